"""Statistics of scores and rewards, with intervals over prompts: numpy."""
