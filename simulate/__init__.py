"""Simulation of the weight norm, analysis of trajectories and prediction of periods, without training a network.

Names are imported on first use. The stub `__init__.pyi` says which module has which name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
