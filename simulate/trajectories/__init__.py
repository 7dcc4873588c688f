"""Trajectories: data contract, storage, periods, statistics."""
