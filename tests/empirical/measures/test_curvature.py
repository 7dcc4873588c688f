"""Curvature compared with differences of gradients and dense matrices."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import empirical
from empirical.data import load_data
from empirical.measures.curvature import LossCurvature, TraceEstimate, curvature, largest_eigenvalues, trace
from empirical.networks import build_network
from empirical.networks.normalization import BatchNorm, GroupNorm

SAMPLES, CLASSES = 12, 3


class Block(nn.Module):
    """A residual block: two convolutions with normalization, and a shortcut of its own."""

    def __init__(self, normalization):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.shortcut, self.head = nn.Conv2d(2, 3, 1, bias=False), nn.Linear(3, CLASSES)
        self.norms = nn.ModuleList(normalization(3) for _ in range(2))

    def forward(self, inputs):
        inner = torch.nn.functional.silu(self.norms[0](self.first(inputs)))
        return self.head((self.norms[1](self.second(inner)) + self.shortcut(inputs)).mean((2, 3)))


def mlp(normalization):
    layers = [nn.Linear(4, 5, bias=False), normalization(5), nn.Tanh(), nn.Linear(5, 5), normalization(5), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(5, CLASSES))


def convnet(normalization):
    first, second = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 4, 3, stride=2, bias=False)
    return nn.Sequential(
        first, normalization(3), nn.SiLU(), second, normalization(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES)
    )


NORMALIZATIONS = {
    "own batch": lambda c: BatchNorm(c, affine=True),
    "own layer": lambda c: GroupNorm(1, c, affine=True),
    "own group": lambda c: GroupNorm(1, c),
    "torch's batch": lambda c: None,
    "torch's group": lambda c: nn.GroupNorm(1, c),
}
NETWORKS = {"mlp": mlp, "convnet": convnet, "block": Block}


def case(network, normalization, seed=0):
    """A small model in float64 with random parameters, and a batch."""
    torch.manual_seed(seed)
    make = NORMALIZATIONS[normalization]
    if normalization == "torch's batch":
        make = nn.BatchNorm1d if network == "mlp" else nn.BatchNorm2d
    model = NETWORKS[network](make).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    shape = (SAMPLES, 4) if network == "mlp" else (SAMPLES, 2, 6, 6)
    return model, torch.randn(shape).double(), torch.arange(SAMPLES) % CLASSES


def flatten(parts, like):
    return torch.cat(
        [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for p, g in zip(like, parts, strict=True)]
    )


def hessian_by_differences(model, inputs, targets):
    """Central differences of gradients by all parameters, of fourth order."""
    twin = copy.deepcopy(model).train()
    parameters = list(twin.parameters())

    def gradient_at(point):
        with torch.no_grad():
            nn.utils.vector_to_parameters(point, parameters)
        loss = nn.functional.cross_entropy(twin(inputs), targets)
        return flatten(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)

    point = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).clone()
    columns, gap = [], 1e-3
    for i in range(point.numel()):
        unit = torch.zeros_like(point)
        unit[i] = gap
        near, far = (gradient_at(point + times * unit) - gradient_at(point - times * unit) for times in (1, 2))
        columns.append((8 * near - far) / (12 * gap))
    matrix = torch.stack(columns, dim=1).numpy()
    return (matrix + matrix.T) / 2


def dense(product, size):
    return torch.stack([product(unit) for unit in torch.eye(size).double()], dim=1).numpy()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_eigenvalues_and_traces_are_those_of_dense_oracles(network, normalization):
    model, inputs, targets = case(network, normalization)
    result = curvature(model, inputs, targets, k=3)
    oracle = hessian_by_differences(model, inputs, targets)
    values = np.linalg.eigvalsh(oracle)[::-1]
    np.testing.assert_allclose(result.hessian_eigenvalues, values[:3], rtol=1e-6, atol=1e-8 * values[0])
    assert result.hessian_trace.value == pytest.approx(np.trace(oracle), rel=1e-6, abs=1e-8)
    assert result.hessian_trace.stderr == 0
    # of the Gauss-Newton and Fisher matrices: from the Jacobian, and from the gradients of every class
    twin = copy.deepcopy(model).train()
    parameters = list(twin.parameters())
    outputs = twin(inputs)
    rows = [
        torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True) for output in outputs.reshape(-1)
    ]
    jacobian = torch.stack([flatten(row, parameters) for row in rows]).numpy()
    shares = torch.softmax(outputs, 1).detach().numpy()
    fisher = np.zeros((jacobian.shape[1],) * 2)
    for n in range(SAMPLES):
        for c in range(CLASSES):
            slope = (shares[n] - np.eye(CLASSES)[c]) @ jacobian[n * CLASSES : (n + 1) * CLASSES]
            fisher += shares[n, c] * np.outer(slope, slope) / SAMPLES
    top = np.linalg.eigvalsh(fisher)[::-1][:3]
    np.testing.assert_allclose(result.fisher_eigenvalues, top, rtol=1e-8)
    np.testing.assert_allclose(result.gauss_newton_eigenvalues, top, rtol=1e-8)
    assert result.fisher_trace.value == pytest.approx(np.trace(fisher), rel=1e-8)
    assert result.gauss_newton_trace.value == pytest.approx(np.trace(fisher), rel=1e-8)
    # the sphere of the scale-invariant weights
    members = [name for group in empirical.scale_invariant_groups(model, inputs).values() for name in group.weights]
    assert members
    named = dict(model.named_parameters())
    chosen = np.concatenate([np.full(p.numel(), name in members) for name, p in named.items()])
    block = oracle[np.ix_(chosen, chosen)]
    x = np.concatenate([p.detach().numpy().ravel() for name, p in named.items() if name in members])
    square = x @ x
    projector = np.eye(x.size) - np.outer(x, x) / square
    assert result.norm == pytest.approx(math.sqrt(square), rel=1e-12)
    assert result.spherical_sharpness == pytest.approx(square * np.linalg.eigvalsh(block)[-1], rel=1e-6)
    within = np.linalg.eigvalsh(projector @ block @ projector)[-1]
    assert result.tangent_sharpness == pytest.approx(square * within, rel=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_operators_are_symmetric(network, normalization):
    landscape = LossCurvature(*case(network, normalization, seed=3))
    generator = torch.Generator().manual_seed(0)
    for product in (landscape.hessian_product, landscape.gauss_newton_product, landscape.fisher_product):
        for _ in range(3):
            u, v = (torch.randn(landscape.size, generator=generator).double() for _ in range(2))
            one, other = float(u @ product(v)), float(v @ product(u))
            assert abs(one - other) <= 1e-10 * max(abs(one), 1.0)


def test_another_route_through_fused_normalization_would_be_caught():
    # the reason to use the double backward pass of autograd
    model, inputs, targets = case("mlp", "torch's batch")
    names = [name for name, _ in model.named_parameters()]
    oracle = hessian_by_differences(model, inputs, targets)
    parameters = dict(model.named_parameters())
    sizes = [parameters[name].numel() for name in names]
    for norm in model:
        if isinstance(norm, nn.BatchNorm1d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None

    def loss(flat):
        parts = torch.split(flat, sizes)
        values = {name: part.reshape(parameters[name].shape) for name, part in zip(names, parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, values, (inputs,)), targets)

    point = torch.cat([parameters[name].detach().reshape(-1) for name in names])
    other = torch.func.hessian(loss)(point).detach().numpy()
    ours = dense(LossCurvature(model, inputs, targets).hessian_product, point.numel())
    scale = np.abs(oracle).max()
    assert np.abs(ours - oracle).max() < 1e-8 * scale
    if np.abs(other - oracle).max() < 1e-8 * scale:
        pytest.skip("this PyTorch has repaired torch.func.hessian through fused normalization")
    assert np.abs(other - oracle).max() > 1e-3 * scale, "an error of that size would fail the tests above"


def test_a_custom_loss_has_no_fisher_matrix():
    model, inputs, targets = case("mlp", "own batch")

    def cubed(outputs, targets):
        return (outputs**3).mean() + nn.functional.cross_entropy(outputs, targets)

    result = curvature(model, inputs, targets, loss=cubed)
    assert result.fisher_eigenvalues is None
    assert result.fisher_trace is None
    # with another curvature by the outputs the Gauss-Newton matrix is another
    assert result.gauss_newton_eigenvalues[0] != pytest.approx(
        curvature(model, inputs, targets).gauss_newton_eigenvalues[0]
    )
    with pytest.raises(ValueError, match="Fisher matrix"):
        LossCurvature(model, inputs, targets, loss=cubed).fisher_product(torch.zeros(1))


def test_of_a_linear_model_all_three_are_the_same():
    # z = Wx with the mean squared error: H = 2XᵀX/n in each row of W
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    result = curvature(nn.Linear(4, 2, bias=False).double(), inputs, targets, k=2, loss="mse")
    exact = np.linalg.eigvalsh((inputs.T @ inputs).numpy() / 20)[::-1]
    for values in (result.hessian_eigenvalues, result.gauss_newton_eigenvalues, result.fisher_eigenvalues):
        # each twice, for two rows
        np.testing.assert_allclose(values, [exact[0]] * 2, rtol=1e-9)
    assert math.isnan(result.spherical_sharpness)
    assert result.hessian_trace.value == pytest.approx(2 * exact.sum(), rel=1e-9)


@pytest.mark.parametrize("scale", [0.05, 0.7, 20.0])
def test_spherical_sharpness_does_not_depend_on_the_scale_of_the_weights(scale):
    model, inputs, targets = case("convnet", "own group")
    plain = curvature(model, inputs, targets, traces=False)
    members = [name for group in empirical.scale_invariant_groups(model, inputs).values() for name in group.weights]
    with torch.no_grad():
        for name in members:
            dict(model.named_parameters())[name].mul_(scale)
    scaled = curvature(model, inputs, targets, traces=False)
    assert scaled.norm == pytest.approx(scale * plain.norm, rel=1e-9)
    assert scaled.spherical_sharpness == pytest.approx(plain.spherical_sharpness, rel=1e-6)
    assert scaled.tangent_sharpness == pytest.approx(plain.tangent_sharpness, rel=1e-6)


def test_the_model_stays_as_it_is():
    model, inputs, targets = case("convnet", "torch's batch")
    model.float().eval()
    nn.functional.cross_entropy(model(inputs.float()), targets).backward()
    before = copy.deepcopy(model.state_dict())
    slopes = [parameter.grad.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    curvature(model, inputs, targets)
    assert not model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(torch.equal(slope, parameter.grad) for slope, parameter in zip(slopes, model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_dropout_drops_the_same_units_in_every_product():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Dropout(0.5), nn.Linear(30, CLASSES)).double()
    landscape = LossCurvature(model, torch.randn(SAMPLES, 4), torch.arange(SAMPLES) % CLASSES)
    v = torch.randn(landscape.size).double()
    assert torch.equal(landscape.hessian_product(v), landscape.hessian_product(v))
    result = [curvature(model, torch.ones(SAMPLES, 4), torch.arange(SAMPLES) % CLASSES, seed=n).loss for n in (0, 0, 1)]
    assert result[0] == result[1] != result[2]


def test_estimated_traces_are_within_their_error():
    matrix = torch.randn(1500, 1500, generator=torch.Generator().manual_seed(0)).double()
    matrix = matrix + matrix.T
    errors = []
    for seed in range(20):
        result = trace(lambda v: matrix @ v, torch.zeros(1500).double(), 30, seed)
        assert result.stderr > 0
        errors.append((result.value - float(matrix.trace())) / result.stderr)
    # as standard errors are
    assert 0.6 < np.std(errors) < 1.6
    assert abs(np.mean(errors)) < 4 / math.sqrt(20)
    assert str(TraceEstimate(1.0, 0.0)) == "1"


def test_the_largest_eigenvalue_of_the_digits_convnet_takes_few_gradients():
    run = empirical.RunConfig(lr=0.5, wd=0.01, model="convnet")
    data = load_data("digits", torch.float32, torch.device("cpu"))
    network = build_network(run, data.inputs, 10)
    landscape = LossCurvature(network, data.inputs[:256], data.targets[:256])
    (quick,) = largest_eigenvalues(landscape.hessian_product, landscape.point, 1, 1e-3, 0)
    # a product is one backward pass through the graph of a gradient: two gradients
    assert 2 * landscape.products <= 60
    (exact,) = largest_eigenvalues(landscape.hessian_product, landscape.point, 1, 1e-10, 1)
    assert quick == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k must be"),
        ({"k": 10_000}, "k must be at most"),
        ({"loss": "hinge"}, r"loss.*hinge"),
        ({"loss": 3}, r"loss.*int"),
        ({"loss": lambda outputs, targets: outputs.mean(1)}, "one number"),
        ({"loss": lambda outputs, targets: torch.zeros(())}, r"loss.*gradient"),
        ({"weights": ["9.weight"]}, r"weights.*9\.weight"),
        ({"weights": []}, r"weights.*\[\]"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"vectors": 1}, "vectors"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        curvature(*case("mlp", "own batch"), **options)


def test_no_model():
    with pytest.raises(TypeError, match="model must be a torch"):
        curvature(3, torch.ones(2, 4), torch.zeros(2))


def test_under_full_batches_the_edge_is_reached_before_a_destabilization(tmp_path):
    from empirical.studies.tables import FULL_BATCH, edge_figure, measure_edge

    config = dataclasses.replace(FULL_BATCH, wd=0.02, width=32, samples=200, steps=1500)
    result = measure_edge(config, tmp_path, points=6)
    assert result.steps[-1] == result.onset
    # far below the edge in the decay phase, at the edge where the phase ends
    assert result.product[2:5].max() < 1.5
    assert result.median_before_onset > 1.2
    figure = edge_figure({"full batch": result})
    assert "before the onset" in figure.axes[0].get_title()
    figure.draw_without_rendering()
    # above all axes, where no line crosses it
    (legend,) = figure.legends
    assert legend.get_window_extent().y0 >= max(ax.get_window_extent().y1 for ax in figure.axes)
    with pytest.raises(ValueError, match="at least one period"):
        measure_edge(dataclasses.replace(config, steps=150), tmp_path / "short")
    with pytest.raises(ValueError, match="points"):
        measure_edge(config, tmp_path, points=1)


def test_ignored_targets_do_not_count():
    model, inputs, targets = case("mlp", "own layer")
    kept = [0, 3, 4, 7]
    left_out = torch.full_like(targets, -100)
    left_out[kept] = targets[kept]
    result, alone = curvature(model, inputs, left_out), curvature(model, inputs[kept], targets[kept])
    for name in ("hessian_eigenvalues", "gauss_newton_eigenvalues", "fisher_eigenvalues"):
        # each sample is normalized by itself
        np.testing.assert_allclose(getattr(result, name), getattr(alone, name), rtol=1e-8)


def test_a_loss_without_curvature_has_none():
    result = curvature(
        nn.Linear(30, 1), torch.randn(8, 30), torch.zeros(8), loss=lambda outputs, targets: outputs.mean()
    )
    assert result.hessian_eigenvalues.tolist() == result.gauss_newton_eigenvalues.tolist() == [0.0]


def test_numbers_of_another_type_are_taken():
    model, inputs, targets = case("mlp", "own batch")
    single = curvature(model.float(), inputs.numpy(), targets, dtype=None, tolerance=1e-4)
    assert single.hessian_eigenvalues == pytest.approx(curvature(model, inputs, targets).hessian_eigenvalues, rel=1e-3)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"targets.*'mse'.*\(8, 1\).*\(8,\)"):
        curvature(nn.Linear(4, 1), torch.randn(8, 4), torch.randn(8), loss="mse")
    with pytest.raises(ValueError, match="at least 2 samples"):
        curvature(nn.Linear(4, 3), torch.randn(1, 4), torch.zeros(1).long())
