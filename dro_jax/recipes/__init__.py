"""Commands that prepare a run, and runs in stages."""
