"""T5: its configuration, network, parameters and their names elsewhere."""
