"""T5Gemma and T5Gemma 2 (text): their configuration, network, and names elsewhere."""
