"""A run's folder: one module for each thing in it."""
