"""What weight decay does to each parameter of a model, from the scaling symmetries of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from empirical._model_copy import Inputs
from empirical.groups import measure_symmetries

if TYPE_CHECKING:
    import pandas as pd

_ALONE, _TOGETHER, _RESCALED, _FREE, _INERT, _FROZEN = (
    "scale-invariant",
    "scale-invariant together",
    "rescaled",
    "free",
    "no influence",
    "frozen",
)
_EFFECTS = {
    _ALONE: "decay changes no output; with lr it sets norm, effective lr and rotation per step",
    _TOGETHER: "decay of the whole set changes no output; decay of a part changes the balance in the set",
    _RESCALED: "decay balances the norms of the partners and reduces their product, which changes the output",
    _FREE: "decay makes the weights smaller and changes the output",
    _INERT: "decay changes no output; it moves the parameter to 0",
    _FROZEN: "not trained",
}


def weight_roles(model: nn.Module, inputs: Inputs) -> pd.DataFrame:
    """Find what weight decay does to each parameter of a model.

    The roles follow from the scalings that do not change the output of the model in train mode, as
    `scale_invariant_groups` and `scaling_symmetries` measure them. A normalized weight is scale-invariant alone.
    Weights that write into one residual stream are so together. Two layers around a ReLU are rescaled: one may grow by
    a factor and the other shrink by it. So are γ and β of a normalization and the layer after them.

    Parameters
    ----------
    model, inputs : as in `scale_invariant_groups`.

    Returns
    -------
    pandas.DataFrame, one row per parameter in the order of the model: `role`, `partners` (names of the other parameters
    of its set or rescaling), `weights` (how many) and `decay` (what decay does).

    Raises
    ------
    TypeError, ValueError : as in `scale_invariant_groups`.

    Source: docs/mathematics.md §10.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> weight_roles(model, torch.randn(16, 5)).role.tolist()
    ['scale-invariant', 'no influence', 'rescaled', 'rescaled', 'rescaled', 'free']
    """
    import pandas as pd

    groups, symmetries, active = measure_symmetries(model, inputs)
    sets = [set(group.weights) for group in groups.values()]
    grouped = set().union(*sets)
    rows = {}
    for name, parameter in model.named_parameters():
        own = next((members for members in sets if name in members), set())
        rescaled = {
            partner for symmetry in symmetries if name in symmetry and name not in grouped for partner in symmetry
        }
        if not parameter.requires_grad:
            role = _FROZEN
        elif own:
            role = _ALONE if len(own) == 1 else _TOGETHER
        elif rescaled:
            role = _RESCALED
        else:
            role = _FREE if name in active else _INERT
        partners = sorted((own or rescaled) - {name})
        rows[name] = (role, partners, parameter.numel(), _EFFECTS[role])
    return pd.DataFrame.from_dict(rows, orient="index", columns=["role", "partners", "weights", "decay"])
