"""The suite of exercises in text with checkable answers."""
