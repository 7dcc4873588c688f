"""Held-out predictions: periods predicted for networks and settings that were not used in development."""
