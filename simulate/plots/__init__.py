"""Figures of trajectories, groups of weights, periods, phase diagrams and diagnosed logs."""

from simulate.plots.diagnosis import plot_diagnosis
from simulate.plots.groups import plot_groups
from simulate.plots.phase_diagram import plot_phase_diagram
from simulate.plots.trajectory import plot_periods, plot_phase, plot_trajectory

__all__ = ["plot_diagnosis", "plot_groups", "plot_periods", "plot_phase", "plot_phase_diagram", "plot_trajectory"]
