"""Simulation of the weight norm, analysis of trajectories and prediction of periods, without training a network."""

from simulate import plots
from simulate.diagnosis.diagnosis import Diagnosis, Spike, diagnose
from simulate.explorer import Exploration, explore, plot_exploration, write_explorer_page
from simulate.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient, descend
from simulate.logs.read import describe_log, read_log
from simulate.maps.gradients import AdversarialGradient, BoundedGradient, RecordedGradient
from simulate.maps.norm_map import norm_map, norm_ode, replay
from simulate.maps.random_walk import random_walk
from simulate.period_model.model import PeriodModel, oscillate, period
from simulate.period_model.prediction import Interval, Prediction
from simulate.phase_diagram import phase_diagram
from simulate.trajectories.classification import Classification, classify
from simulate.trajectories.feedback import FeedbackTest
from simulate.trajectories.folder import load, save
from simulate.trajectories.groups import group_trajectory
from simulate.trajectories.periods import MeasuredPeriods, find_periods

__all__ = [
    "AdversarialGradient",
    "BoundedGradient",
    "Classification",
    "Diagnosis",
    "Exploration",
    "FeedbackTest",
    "Interval",
    "MeasuredPeriods",
    "NormalizedRegression",
    "PeriodModel",
    "Prediction",
    "Ratio2D",
    "RayleighQuotient",
    "RecordedGradient",
    "Spike",
    "classify",
    "descend",
    "describe_log",
    "diagnose",
    "explore",
    "find_periods",
    "group_trajectory",
    "load",
    "norm_map",
    "norm_ode",
    "oscillate",
    "period",
    "phase_diagram",
    "plot_exploration",
    "plots",
    "random_walk",
    "read_log",
    "replay",
    "save",
    "write_explorer_page",
]
