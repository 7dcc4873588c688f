"""Diagnosis of training logs: why the loss spiked, and where the norm is heading."""
