"""Compiled training steps: the inner loops of the kernel engine."""
