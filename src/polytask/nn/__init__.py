"""Models: embedding tables, bodies that share, and one head per task."""
