"""Diagnosis tested on trainings with known causes."""
