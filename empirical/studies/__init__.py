"""Trials: training runs whose outcome is held against theory and simulation."""
