"""From a trained model to answers: lists of items for raw ids, with filters, mixes, diversity and an index."""
