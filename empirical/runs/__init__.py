"""Runs: the training loop and its folder on disk."""
