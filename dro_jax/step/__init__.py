"""One training step, for any loss and any model."""
