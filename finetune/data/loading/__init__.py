"""Rows as samples, batches and loaders."""
