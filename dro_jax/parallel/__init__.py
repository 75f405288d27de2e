"""The mesh, the processes that share it, and the signals that stop them."""
