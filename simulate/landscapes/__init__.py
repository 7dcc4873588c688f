"""Small scale-invariant losses, and compiled training on them."""

from simulate.landscapes.descend import descend
from simulate.landscapes.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient

__all__ = ["NormalizedRegression", "Ratio2D", "RayleighQuotient", "descend"]
