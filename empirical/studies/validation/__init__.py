"""Validation: predictions and simulations compared with training, row by row."""
