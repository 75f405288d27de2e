"""Describes triplet files, and finds the algorithms that can learn from them."""
