"""What a step costs: operations, bytes and seconds."""
