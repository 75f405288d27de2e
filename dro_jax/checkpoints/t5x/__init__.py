"""Checkpoints in T5X's format."""
