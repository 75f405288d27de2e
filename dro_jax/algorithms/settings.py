"""Reasons for refusing a setting at the end of its range, shared by several algorithms."""

# Each completes a sentence after "because".
STILL = 'at 0 its gradient is 0 and nothing is learned'
UNHELD = 'at 0 nothing holds the policy to its reference'
CLIPPED = 'at 0 every ratio is clipped'
WINDOW = 'e^ρ is clipped to 1 ± ε, and a weight may not be negative'
NO_SIDE = 'at half neither of a pair is preferred, and above it the rejected one'
