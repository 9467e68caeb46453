"""Checkpoints, our own and foreign ones."""
