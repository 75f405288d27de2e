"""Triplets that this project generates."""
