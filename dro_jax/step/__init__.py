"""One training step; it knows no concrete loss and no concrete model."""
