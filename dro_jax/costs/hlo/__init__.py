"""A compiled program's text, read: loops, operations, collectives, memory."""
