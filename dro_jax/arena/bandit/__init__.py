"""The suite with one prompt, where every optimum is known on paper."""
