"""Training runs: the loop that trains a network, and the run folder on disk."""
