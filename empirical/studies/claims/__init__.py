"""Statements of the paper and of its neighbours, each on trial with real training."""
