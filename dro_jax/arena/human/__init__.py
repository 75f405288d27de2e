"""The suite on people's own ratings."""
