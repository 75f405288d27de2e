"""T5X's checkpoints."""
