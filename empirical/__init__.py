"""Train real networks with normalization and weight decay, and measure every step.

Names are imported on first use, so that importing this package (and `bnwd predict`) does not load torch. The stub
`__init__.pyi` says which module has which name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
