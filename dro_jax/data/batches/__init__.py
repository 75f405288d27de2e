"""Batches as rows of tokens."""
