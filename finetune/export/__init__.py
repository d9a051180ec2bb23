"""Artifacts for users: written, recorded, proven in a fresh process, described."""
