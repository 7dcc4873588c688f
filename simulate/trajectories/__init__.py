"""Trajectories: contract, storage, periods, pictures."""
