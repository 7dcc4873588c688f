"""Dynamics of the norm and trajectories, without networks."""

from simulate.expectation import Expectation
from simulate.explorer import Explored, explore, plot_explored, write_explorer_page
from simulate.intervals import Interval
from simulate.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient, descend
from simulate.maps.gradients import AdversarialGradient, BoundedGradient, RecordedGradient
from simulate.maps.norm_map import norm_map, replay
from simulate.maps.norm_ode import norm_ode
from simulate.maps.random_walk import random_walk
from simulate.oscillator import Oscillator, Period
from simulate.period_model import PeriodModel, oscillate, period
from simulate.phase_diagram import phase_diagram
from simulate.trajectories import plots
from simulate.trajectories.diagnosis import Diagnosis, Spike, diagnose
from simulate.trajectories.folder import load, save
from simulate.trajectories.periods import Classification, Periods, classify, find_periods
from simulate.trajectories.training_log import read_log, training_log

__all__ = [
    "AdversarialGradient",
    "BoundedGradient",
    "Classification",
    "Diagnosis",
    "Expectation",
    "Explored",
    "Interval",
    "NormalizedRegression",
    "Oscillator",
    "Period",
    "PeriodModel",
    "Periods",
    "Ratio2D",
    "RayleighQuotient",
    "RecordedGradient",
    "Spike",
    "classify",
    "descend",
    "diagnose",
    "explore",
    "find_periods",
    "load",
    "norm_map",
    "norm_ode",
    "oscillate",
    "period",
    "phase_diagram",
    "plot_explored",
    "plots",
    "random_walk",
    "read_log",
    "replay",
    "save",
    "training_log",
    "write_explorer_page",
]
