"""Compiled training steps: inner loops, nothing else."""
