"""What a triplet file holds, and how to train on it."""
