"""Settings of all tests and doctests, made before anything is imported."""

import os

# Test processes run side by side, and the networks are tiny: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
