"""From a user's table to batches: a row is read, checked, prepared and loaded; `preview` shows the result."""
