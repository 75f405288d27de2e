"""The token table, and columns kept beside it."""
