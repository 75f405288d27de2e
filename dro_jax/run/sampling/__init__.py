"""Samples of the policy during a run, and their rewards."""
