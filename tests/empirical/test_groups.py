import copy

import pytest
import torch
from torch import nn

from empirical.config import RunConfig
from empirical.groups import scale_invariant_groups, scaling_symmetries
from empirical.networks import build_network

IMAGES = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))


def group_names(model, inputs=ROWS):
    return list(scale_invariant_groups(model, inputs))


@pytest.mark.parametrize("scale_invariant", [True, False])
def test_our_networks(scale_invariant):
    for model, names in (
        ("mlp", ["linear1.weight", "linear2.weight"]),
        ("convnet", [f"conv{number}.weight" for number in (1, 2, 3, 4)]),
    ):
        config = RunConfig(lr=0.1, wd=0.01, model=model, scale_invariant=scale_invariant)
        assert group_names(build_network(config, IMAGES, 10), IMAGES) == names


def test_a_network_without_normalization_has_none():
    config = RunConfig(lr=0.1, wd=0.01, normalization="none", scale_invariant=False)
    assert group_names(build_network(config, IMAGES, 10), IMAGES) == []


def test_homogeneous_weights_are_not_invariant():
    # scaling these weights scales the output: a radial derivative, though no bias
    assert group_names(nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))) == []


def test_a_bias_before_a_normalization_is_inert_and_left_out():
    assert group_names(nn.Sequential(nn.Linear(6, 8, bias=True), nn.BatchNorm1d(8), nn.Linear(8, 3))) == ["0.weight"]


def test_a_zero_gamma_does_not_make_everything_before_it_invariant():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    nn.init.zeros_(model[3].weight)
    # the first layer is not invariant alone, because of its bias, although f does not move at γ = 0
    assert group_names(model) == ["0.weight and 1 more", "2.weight"]


def members(model, inputs=ROWS, **settings):
    return [group.weights for group in scale_invariant_groups(model, inputs, **settings).values()]


def test_weight_and_bias_are_invariant_together():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    assert members(model) == [("0.weight", "0.bias")]


def test_gamma_and_beta_are_invariant_together_where_a_normalization_follows():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    assert members(model) == [("0.weight",), ("3.weight",)]
    assert members(model, vectors=True) == [("0.weight",), ("1.weight", "1.bias"), ("3.weight",)]


def images(pixels=16):
    return torch.randn(40, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


STREAMS = [
    ("stem.weight", "stage1block1.conv2.weight", "stage1block2.conv2.weight"),
    *(
        (f"stage{s}block1.conv2.weight", f"stage{s}block1.shortcut.conv.weight", f"stage{s}block2.conv2.weight")
        for s in (2, 3, 4)
    ),
]


@pytest.mark.parametrize(
    ("normalization", "scale_invariant"),
    [("batch", True), ("batch", False), ("layer", False), ("group", True), ("rms", False)],
)
def test_weights_of_a_residual_stream_are_invariant_together(normalization, scale_invariant):
    config = RunConfig(
        lr=0.1, wd=0.01, model="resnet18", width=4, normalization=normalization, scale_invariant=scale_invariant
    )
    singles = [(f"stage{s}block{b}.conv1.weight",) for s in (1, 2, 3, 4) for b in (1, 2)]
    inputs = images(32 if normalization == "group" else 16)
    sets = members(build_network(config, inputs, 10), inputs)
    # in forward order a shortcut comes after its branch; every weight but the head's is in one group
    assert {frozenset(s) for s in sets} == {frozenset(s) for s in [*STREAMS, *singles]}
    assert sum(map(len, sets)) == 20


def test_channels_of_a_residual_stream_are_invariant_one_by_one():
    config = RunConfig(lr=0.1, wd=0.01, model="resnet18", width=2)
    sets = members(build_network(config, images(), 10), images(), per_filter=True)
    for stream in STREAMS:
        channels = 2 * 2 ** int(stream[1][5]) // 2
        for channel in range(channels):
            assert {f"{name}[{channel}]" for name in stream} in [set(s) for s in sets]
    # a convolution before a batch norm is invariant filter by filter
    assert ("stage1block1.conv1.weight[0]",) in sets
    assert len(sets) == 2 * (2 + 4 + 8 + 16) + (2 + 4 + 8 + 16)


@pytest.mark.parametrize("normalization", ["layer", "rms", "batch"])
def test_groups_of_the_transformer(normalization):
    config = RunConfig(lr=0.1, wd=0.01, model="transformer", width=8, normalization=normalization)
    sets = members(build_network(config, images(), 10), images())
    stream = {"position", "embed.weight", *(f"blocks.{b}.{w}.weight" for b in (0, 1) for w in ("output", "linear2"))}
    alone = [{f"blocks.{b}.{name}.weight"} for b in (0, 1) for name in ("query", "key")]
    assert set(sets[0]) == stream
    assert [set(s) for s in sets[1:]] == alone


@pytest.mark.parametrize("model", ["mlp", "convnet", "resnet18", "transformer"])
def test_normalized_weights_are_invariant_one_by_one(model):
    config = RunConfig(lr=0.1, wd=0.01, model=model, width=4, normalization="weight")
    net = build_network(config, images(), 10)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {name for (name,) in members(net, images())} == trained


class Overlapping(nn.Module):
    """norm(a + c relu(b)): both {a, b} and {a, c} are invariant."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norm = nn.BatchNorm1d(8, affine=False)

    def forward(self, x):
        return self.norm(self.a(x) + self.c(torch.relu(self.b(x))))


def test_of_overlapping_groups_the_one_that_writes_last_is_chosen():
    assert members(Overlapping()) == [("a.weight", "c.weight")]
    assert scaling_symmetries(Overlapping(), ROWS) == [
        {"a.weight": 1.0, "c.weight": 1.0},
        {"b.weight": 1.0, "c.weight": -1.0},
    ]


class Tied(nn.Module):
    """One matrix that is used twice: only scaling both layers can leave the output unchanged."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.outer(self.inner(torch.relu(self.inner(x))))


def test_a_matrix_that_is_used_twice():
    assert members(Tied()) == []
    # scaling the inner matrix by s and the outer one by s⁻²
    assert scaling_symmetries(Tied(), ROWS) == [{"inner.weight": 1.0, "outer.weight": -2.0}]
    normalized = nn.Sequential(Tied(), nn.LayerNorm(3))
    assert members(normalized) == [("0.inner.weight",), ("0.outer.weight",)]


def test_a_network_without_symmetries():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    assert members(model) == scaling_symmetries(model, ROWS) == []


def test_names_do_not_matter():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.batchnorm_gamma = nn.Linear(6, 8, bias=False)  # invariant in spite of its name
            self.conv_weight = nn.Linear(8, 3, bias=False)  # not invariant in spite of its name

        def forward(self, x):
            z = self.batchnorm_gamma(x)
            return self.conv_weight(torch.relu((z - z.mean(0)) * torch.rsqrt(z.var(0))))

    assert group_names(Odd()) == ["batchnorm_gamma.weight"]


def test_order_is_that_of_the_forward_pass():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.norm2 = nn.Linear(8, 3, bias=False), nn.BatchNorm1d(3)
            self.first, self.norm1 = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm2(self.last(torch.relu(self.norm1(self.first(x)))))

    assert group_names(Backwards()) == ["first.weight", "last.weight"]


def test_layer_norm_and_dropout():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert group_names(model) == ["0.weight"]


def test_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    assert group_names(model) == []


def test_the_defect_grows_with_eps():
    def defect(eps):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=eps), nn.Linear(8, 3))
        return scale_invariant_groups(model, ROWS)["0.weight"].defect

    assert defect(1e-12) < 1e-9 < defect(1e-5) < defect(1e-2)


def test_model_and_random_state_do_not_change():
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
