"""Roles of parameters under weight decay, against outputs of scaled models."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import relu, rms_norm

from empirical import RunConfig, weight_roles
from empirical.networks import build_network

torch.manual_seed(0)
ROWS, IMAGES = torch.randn(12, 6), torch.randn(8, 3, 8, 8)


class Stream(nn.Module):
    """Residual stream with one branch of two layers, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((6, 5), (5, 7), (7, 5)))
        self.query, self.head = nn.Linear(5, 4, bias=False), nn.Linear(9, 3)

    def forward(self, rows):
        stream = self.embed(rows)
        stream = stream + self.down(relu(self.up(rms_norm(stream, (5,), eps=1e-12))))
        query = rms_norm(self.query(rms_norm(stream, (5,), eps=1e-12)), (4,), eps=1e-12)
        return self.head(torch.cat([rms_norm(stream, (5,), eps=1e-12), query], dim=1))


def half_frozen():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    model[3].weight.requires_grad = False
    return model


MODELS = {
    "stream": Stream,
    "batch norm": half_frozen,
    "plain": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)),
    "convnet": lambda: build_network(RunConfig(lr=1, wd=0, model="convnet", width=2, scale_invariant=False), IMAGES, 4),
}


def change(model, inputs, factors):
    """Largest relative change of the output when parameters are scaled."""
    scaled = copy.deepcopy(model).double()
    with torch.no_grad():
        before = scaled(inputs.double())
        for name, factor in factors.items():
            dict(scaled.named_parameters())[name].mul_(factor)
        after = scaled(inputs.double())
    return float((after - before).norm() / before.norm())


def test_roles_of_a_residual_stream():
    roles = weight_roles(Stream(), ROWS)
    assert roles.role.to_dict() == {
        "embed.weight": "scale-invariant together",
        "up.weight": "rescaled",
        "down.weight": "scale-invariant together",
        "query.weight": "scale-invariant",
        "head.weight": "free",
        "head.bias": "free",
    }
    assert roles.partners["up.weight"] == ["down.weight"]
    assert roles.partners["embed.weight"] == ["down.weight"]
    assert roles.weights.tolist() == [30, 35, 35, 20, 27, 3]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_change_as_the_roles_say(name):
    torch.manual_seed(1)
    model = MODELS[name]().train()
    with torch.no_grad():
        for parameter in model.parameters():  # some are 0, and so are their multiples
            parameter += 0.2 * torch.randn_like(parameter)
    inputs = IMAGES if name == "convnet" else ROWS
    roles = weight_roles(model, inputs)
    assert list(roles.index) == [name for name, _ in model.named_parameters()]
    # ε of a normalization changes outputs by some 1e-4 here
    for parameter, row in roles.iterrows():
        alone = change(model, inputs, {parameter: 3.0})
        if row.role in ("scale-invariant", "no influence"):
            assert alone < 1e-3
            assert row.partners == []
        elif row.role != "frozen":
            assert alone > 1e-2
        if row.role == "scale-invariant together":
            assert change(model, inputs, dict.fromkeys([parameter, *row.partners], 1.5)) < 1e-3
        if row.role == "rescaled" and len(row.partners) == 1:
            assert change(model, inputs, {parameter: 1.5, row.partners[0]: 1 / 1.5}) < 1e-3
    if name == "plain":
        assert set(roles.role) == {"rescaled"}
    if name == "batch norm":
        assert roles.role.to_dict() == {
            "0.weight": "scale-invariant",
            "0.bias": "no influence",
            "1.weight": "free",
            "1.bias": "free",
            "3.weight": "frozen",
            "3.bias": "free",
        }


def test_models_are_checked_as_for_groups():
    with pytest.raises(TypeError, match="model must be"):
        weight_roles("model", ROWS)
    with pytest.raises(ValueError, match="inputs must be"):
        weight_roles(Stream(), ROWS[:1])
