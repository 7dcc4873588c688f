import pytest
import torch
from torch import nn

from empirical.config import RunConfig
from empirical.networks import BatchNorm, build_network, record_statistics

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(**settings):
    return build_network(RunConfig(lr=0.1, wd=0.01, dtype="float64", **settings), IMAGES, classes=10)


@pytest.mark.parametrize("shape", [(16, 5), (16, 5, 4, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_equals_that_of_torch(shape, affine):
    torch.manual_seed(0)
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours = BatchNorm(5, eps=1e-3, affine=affine).double()
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, eps=1e-3, affine=affine).double()
    if affine:
        with torch.no_grad():
            for own, other in ((ours.gamma, theirs.weight), (ours.beta, theirs.bias)):
                other.copy_(own.normal_())
    weight = torch.randn(shape, dtype=torch.float64)
    values = [(layer(inputs) * weight).sum() for layer in (ours, theirs)]
    gradients = [torch.autograd.grad(value, inputs)[0] for value in values]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_third_derivatives_of_batch_norm_are_right():
    torch.manual_seed(0)
    layer, weight = BatchNorm(2, eps=1e-2).double(), torch.randn(4, 2, dtype=torch.float64)
    start, direction = torch.randn(2, 4, 2, dtype=torch.float64)

    def second(t):
        t = t.detach().requires_grad_()
        value = (layer(start + t * direction) * weight).sum()
        (first,) = torch.autograd.grad(value, t, create_graph=True)
        return first, t

    def derivative(order):
        value, t = second(torch.zeros((), dtype=torch.float64))
        for _ in range(order - 1):
            (value,) = torch.autograd.grad(value, t, create_graph=True)
        return value.item()

    h = 1e-4
    around = []
    for sign in (1, -1):
        value, t = second(torch.tensor(sign * h, dtype=torch.float64))
        around.append(torch.autograd.grad(value, t)[0].item())
    # central difference of exact second derivatives: error h² times the fifth derivative
    assert derivative(3) == pytest.approx((around[0] - around[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_every_trained_weight_of_an_invariant_network_is_scale_invariant(model):
    net = network(model=model)
    before = net(IMAGES)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.mul_(3.7)
    # ε = 1e-12 against variances of order 1e-2
    torch.testing.assert_close(net(IMAGES), before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_scale_invariant_false_trains_everything(model):
    assert all(p.requires_grad for p in network(model=model, scale_invariant=False).parameters())
    assert not all(p.requires_grad for p in network(model=model).parameters())


def test_seeds_change_the_trained_weights_only():
    first, second = network(seed=1), network(seed=2)
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert torch.equal(first.head.weight, second.head.weight)
    assert torch.equal(first.linear1.weight, network(seed=1).linear1.weight)
    assert first.head.weight.norm().item() == pytest.approx(10)


def test_building_does_not_change_the_global_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    network()
    assert torch.equal(torch.get_rng_state(), before)


def test_eval_mode_uses_the_recorded_statistics():
    net = network(model="convnet")
    trained = net(IMAGES)
    net.eval()
    assert net(IMAGES).isnan().all(), "without recorded statistics the output must be NaN"
    with torch.no_grad(), record_statistics(net):
        net(IMAGES)
    # for the same images the recorded statistics equal those of the batch
    torch.testing.assert_close(net(IMAGES), trained)
    # a single image can be classified now, and does not depend on the others
    torch.testing.assert_close(net(IMAGES[:1]), trained[:1])


def test_a_convnet_needs_images():
    config = RunConfig(lr=0.1, wd=0.01, model="convnet")
    with pytest.raises(ValueError, match="must be images"):
        build_network(config, torch.zeros(4, 64), classes=10)
