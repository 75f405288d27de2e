"""Analyses of a compiled program's text: loops, operations, collectives, memory."""
