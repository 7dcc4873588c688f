"""Measurements on models, in our own runs or in anyone's training loop."""
