"""Scale-invariant losses that are small enough to compile, and training on them."""

from simulate.landscapes.descend import descend
from simulate.landscapes.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient

__all__ = ["NormalizedRegression", "Ratio2D", "RayleighQuotient", "descend"]
