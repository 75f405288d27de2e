"""The cost of a step: operations, bytes and seconds."""
