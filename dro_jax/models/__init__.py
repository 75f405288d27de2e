"""Networks, in flax.linen: T5 and the value networks read beside it."""
