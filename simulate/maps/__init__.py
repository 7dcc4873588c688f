"""Simulators of the norm dynamics."""
