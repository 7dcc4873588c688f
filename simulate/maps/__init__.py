"""Simulators of the weight norm: one-step law, differential equation and random walks."""
