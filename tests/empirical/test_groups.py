import copy

import pytest
import torch
from torch import nn

from empirical.config import RunConfig
from empirical.groups import scale_invariant_groups
from empirical.networks import build_network

IMAGES = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))


def found(model, inputs=ROWS):
    return list(scale_invariant_groups(model, inputs))


@pytest.mark.parametrize("scale_invariant", [True, False])
def test_our_networks(scale_invariant):
    for model, names in (
        ("mlp", ["linear1.weight", "linear2.weight"]),
        ("convnet", ["conv1.weight", "conv2.weight", "conv3.weight"]),
    ):
        config = RunConfig(lr=0.1, wd=0.01, model=model, scale_invariant=scale_invariant)
        assert found(build_network(config, IMAGES, 10), IMAGES) == names


def test_a_network_without_normalization_has_none():
    config = RunConfig(lr=0.1, wd=0.01, normalization="none", scale_invariant=False)
    assert found(build_network(config, IMAGES, 10), IMAGES) == []


def test_homogeneous_weights_are_not_invariant():
    # scaling these weights scales the output: a radial derivative, though no bias
    assert found(nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))) == []


def test_a_bias_before_a_normalization_is_inert_and_left_out():
    assert found(nn.Sequential(nn.Linear(6, 8, bias=True), nn.BatchNorm1d(8), nn.Linear(8, 3))) == ["0.weight"]


def test_a_zero_gamma_does_not_make_everything_before_it_invariant():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    nn.init.zeros_(model[3].weight)
    # the first layer has a bias that is not scaled with it, so it is not invariant although f does not move at γ = 0
    assert found(model) == ["2.weight"]


def test_names_do_not_matter():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.batchnorm_gamma = nn.Linear(6, 8, bias=False)  # invariant in spite of its name
            self.conv_weight = nn.Linear(8, 3, bias=False)  # not invariant in spite of its name

        def forward(self, x):
            z = self.batchnorm_gamma(x)
            return self.conv_weight(torch.relu((z - z.mean(0)) * torch.rsqrt(z.var(0))))

    assert found(Odd()) == ["batchnorm_gamma.weight"]


def test_order_is_that_of_the_forward_pass():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.norm2 = nn.Linear(8, 3, bias=False), nn.BatchNorm1d(3)
            self.first, self.norm1 = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm2(self.last(torch.relu(self.norm1(self.first(x)))))

    assert found(Backwards()) == ["first.weight", "last.weight"]


def test_layer_norm_and_dropout():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert found(model) == ["0.weight"]


def test_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    assert found(model) == []


def test_the_defect_grows_with_eps():
    def defect(eps):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=eps), nn.Linear(8, 3))
        return scale_invariant_groups(model, ROWS)["0.weight"].defect

    assert defect(1e-12) < 1e-9 < defect(1e-5) < defect(1e-2)


def test_nothing_is_touched():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scale_invariant_groups(model, ROWS)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_bad_input():
    with pytest.raises(TypeError, match="model must be"):
        scale_invariant_groups("model", ROWS)
    for inputs in (torch.zeros(1, 6), [1.0], torch.tensor(1.0)):
        with pytest.raises(ValueError, match="inputs must be"):
            scale_invariant_groups(nn.Linear(6, 3), inputs)
