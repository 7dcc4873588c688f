"""Test of the diagnosis on trainings with known causes."""
