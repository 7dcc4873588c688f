"""Measurements on models, in runs of this package or in any training loop."""
