"""Scale-invariant groups of random residual networks, compared with the scaling of all subsets of parameters."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.empirical.plain_model import INVARIANT, ROWS, Norm, PlainModel, members

pytestmark = pytest.mark.filterwarnings("ignore")


# random networks against all subsets -------------------------------------------------------------------------------

WIDTH, MOST_PARAMETERS = 6, 9
norms = st.tuples(
    st.sampled_from([kind for kind in Norm.KINDS if kind not in ("std_added", "l2")]),
    st.sampled_from(["eps", "variance_epsilon", "epsilon", "fudge", "in the code"]),
    st.booleans(),
)
blocks = st.fixed_dictionaries(
    {
        "place": st.sampled_from(["pre", "post", "inside", "none"]),
        "norm": norms,
        "is_residual": st.booleans(),
        "layers": st.integers(1, 2),
        "activation": st.sampled_from([functional.relu, functional.gelu, lambda x: x]),
        "has_bias": st.booleans(),
        "is_zero": st.booleans(),
        "is_shared": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.0, 0.3]),
    }
)
specifications = st.fixed_dictionaries(
    {
        "stem": st.sampled_from([None, False, True]),
        "blocks": st.lists(blocks, min_size=1, max_size=3),
        "final_norm": st.none() | norms,
        "has_head": st.booleans(),
        "has_head_bias": st.booleans(),
        "frozen": st.sets(st.integers(0, 11), max_size=2),
    }
)


class RandomBlock(nn.Module):
    def __init__(self, spec, shared):
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=spec["has_bias"]) for _ in range(spec["layers"])])
        if spec["is_shared"] and shared is not None:
            self.layers[-1] = shared
        if spec["is_zero"]:
            nn.init.zeros_(self.layers[-1].weight)
        self.norm = Norm(WIDTH, *spec["norm"]) if spec["place"] != "none" else None
        self.dropout = nn.Dropout(spec["dropout"])

    def forward(self, x):
        place, activation = self.spec["place"], self.spec["activation"]
        z = self.layers[0](self.norm(x) if place == "pre" else x)
        z = activation(self.norm(z) if place == "inside" else z)
        if len(self.layers) > 1:
            z = self.layers[1](z)
        z = self.dropout(z)
        z = x + z if self.spec["is_residual"] else z
        return self.norm(z) if place == "post" else z


class RandomNetwork(nn.Module):
    """Network of a drawn specification with at most `MOST_PARAMETERS` trained parameters."""

    def __init__(self, spec):
        super().__init__()
        self.stem = nn.Identity() if spec["stem"] is None else nn.Linear(6, WIDTH, bias=spec["stem"])
        shared, chain = None, []
        for block in spec["blocks"]:
            chain.append(RandomBlock(block, shared))
            shared = chain[-1].layers[-1]
        self.blocks = nn.Sequential(*chain)
        self.norm = Norm(WIDTH, *spec["final_norm"]) if spec["final_norm"] else nn.Identity()
        self.head = nn.Linear(WIDTH, 3, bias=spec["has_head_bias"]) if spec["has_head"] else nn.Identity()
        generator = torch.Generator().manual_seed(3)
        parameters = list(self.parameters())
        for number, parameter in enumerate(parameters):
            if number in spec["frozen"] or number - len(spec["frozen"]) >= MOST_PARAMETERS:
                parameter.requires_grad_(False)
                parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x))))


def invariant_sets(plain):
    """Sets of parameters that are not inert and whose common scaling leaves the output as it is; by enumeration."""
    active = [name for name in plain.parameters if not plain.is_inert(name)]
    return {
        frozenset(names)
        for size in range(1, len(active) + 1)
        for names in itertools.combinations(active, size)
        if plain.change(names) < INVARIANT and plain.change(names, 1 / 3) < INVARIANT
    }


def check_random_network(spec):
    torch.manual_seed(0)
    model = RandomNetwork(spec)
    plain = PlainModel(model, ROWS[:12])
    for module in plain.model.modules():
        if isinstance(module, Norm):
            module.is_plain = True
    plain.reference = plain.output()
    invariant = invariant_sets(plain)
    for vectors in (False, True):
        groups = [frozenset(group) for group in members(model, ROWS, vectors=vectors)]
        used = frozenset().union(*groups)
        assert len(used) == sum(map(len, groups))
        for group in groups:
            assert group in invariant
            assert not any(smaller < group for smaller in invariant)
        for other in invariant - set(groups):
            has_matrix = any(plain.parameters[name].ndim > 1 for name in other)
            assert other & used or not (has_matrix or vectors), other


common = {"deadline": None, "derandomize": True, "database": None}


@settings(max_examples=12, suppress_health_check=list(HealthCheck), **common)
@given(specifications)
def test_random_networks(spec):
    check_random_network(spec)


@pytest.mark.acceptance
@settings(max_examples=400, suppress_health_check=list(HealthCheck), **common)
@given(specifications)
def test_many_random_networks(spec):
    check_random_network(spec)
