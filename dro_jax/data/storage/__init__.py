"""Folders written whole or not at all, copies of buckets, hashes."""
