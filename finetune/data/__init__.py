"""From a table to batches: rows, pixels, words, order."""
