"""Aligns T5 language models offline from (prompt, response, reward) triplets."""

__version__ = '0.1.0'
