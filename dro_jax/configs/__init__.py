"""Reads, shows and compares gin files, without gin."""
