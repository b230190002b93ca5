"""From files to batches: tables, splits, the encoder fitted on train, negatives and the order of rows."""
