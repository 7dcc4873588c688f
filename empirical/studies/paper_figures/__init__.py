"""Figures of the paper at small scale, in print quality."""
