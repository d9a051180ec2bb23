"""What is wrong or doubtful with a table."""
