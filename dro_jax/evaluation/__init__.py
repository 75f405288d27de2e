"""Policies scored, sampled, checked and compared."""
