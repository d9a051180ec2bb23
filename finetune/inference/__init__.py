"""A trained model asked for answers."""
