"""Sweeps: grids and lists of runs, trained in parallel and opened as one data set."""
