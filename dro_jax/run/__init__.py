"""A run, from its specification to its last step."""
