"""Checkpoints: written, read, digested, imported and exported."""
