"""Hugging Face's checkpoints."""
