"""The networks of the paper, compared with forward passes that are written down from its published code."""

import pytest
import torch
from torch.nn import functional

from empirical.config import RunConfig
from empirical.networks import build_network

EPS = 1e-5


def network(model, images, **settings):
    config = RunConfig(lr=0.1, wd=0.01, model=model, dtype="float64", norm_eps=EPS, **settings)
    return build_network(config, images, classes=10)


def random_images(size, count=6):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def convolutions(depth):
    """Whether channels double and the image halves after each convolution but the first: n0, n1, n2 blocks."""
    groups = -(-depth // 3), depth // 3 + (depth % 3 == 2), depth // 3
    return [block == blocks - 1 for blocks in groups for block in range(blocks)]


def norm(images, affine=None):
    gamma, beta = affine or (None, None)
    return functional.batch_norm(images, None, None, gamma, beta, training=True, eps=EPS)


def convnet_scores(images, weights, depth, last_pooling):
    """Scores by the description; `weights` are consumed in the order of the layers."""
    weights = iter(weights)
    affine = next(weights)

    def block(inputs):
        inputs = functional.conv2d(inputs, next(weights), padding=1)
        return functional.relu(norm(inputs, (next(weights), next(weights)) if affine else None))

    images = block(images)
    for halves in convolutions(depth):
        images = block(images)
        if halves:
            images = functional.max_pool2d(images, 2)
    images = functional.max_pool2d(images, last_pooling)
    return functional.linear(images.flatten(1), next(weights), next(weights))


@pytest.mark.parametrize("scale_invariant", [True, False])
@pytest.mark.parametrize(
    ("depth", "size", "last_pooling"),
    [(3, 32, 4), (1, 32, 16), (2, 32, 8), (4, 32, 4), (5, 32, 4), (7, 32, 4), (3, 64, 4), (3, 8, 1), (3, 28, 3)],
)
def test_convnet_follows_the_description(depth, size, last_pooling, scale_invariant):
    images = random_images(size)
    net = network("convnet", images, width=3, depth=depth, scale_invariant=scale_invariant)
    if not scale_invariant:
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "norm" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
    weights = [not scale_invariant, *net.parameters()]
    torch.testing.assert_close(net(images), convnet_scores(images, weights, depth, last_pooling), rtol=1e-6, atol=1e-6)


def test_channels_of_the_convnet():
    net = network("convnet", random_images(32), width=32)
    convolution_weights = [p for name, p in net.named_parameters() if name.startswith("conv")]
    assert [p.shape[0] for p in convolution_weights] == [32, 64, 128, 256]
    assert [p.numel() for p in convolution_weights] == [864, 18_432, 73_728, 294_912]
    assert sum(p.numel() for p in convolution_weights) == 387_936
    frozen = {name: p for name, p in net.named_parameters() if not p.requires_grad}
    assert {name: p.numel() for name, p in frozen.items()} == {"head.weight": 2560, "head.bias": 10}
    assert frozen["head.weight"].norm().item() == pytest.approx(10)
    # the default initialization of a linear layer with 256 inputs
    assert 0 < frozen["head.bias"].abs().max() < 256**-0.5


def resnet_scores(images, weights, width):
    """Scores by the description; `weights` by name."""

    def conv(inputs, name, stride=1):
        kernel = weights[f"{name}.weight"]
        return functional.conv2d(inputs, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def normalized(inputs, name):
        affine = (weights[f"{name}.gamma"], weights[f"{name}.beta"]) if f"{name}.gamma" in weights else None
        return norm(inputs, affine)

    stream, channels = conv(images, "stem"), width
    for stage in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"stage{stage}block{block}"
            stride, outputs = 2 if stage > 1 and block == 1 else 1, width * 2 ** (stage - 1)
            activated = functional.relu(normalized(stream, f"{name}.norm1"))
            inner = conv(activated, f"{name}.conv1", stride)
            branch = conv(functional.relu(normalized(inner, f"{name}.norm2")), f"{name}.conv2")
            if stride != 1 or outputs != channels:
                # the shortcut takes the activated input, and has a normalization of its own
                stream = conv(normalized(activated, f"{name}.shortcut.norm"), f"{name}.shortcut.conv", stride)
            stream, channels = branch + stream, outputs
    final = functional.avg_pool2d(functional.relu(normalized(stream, "norm")), 4).flatten(1)
    return functional.linear(final, weights["head.weight"])


@pytest.mark.parametrize("scale_invariant", [True, False])
@pytest.mark.parametrize("size", [32, 64])
def test_resnet_follows_the_description(size, scale_invariant):
    images = random_images(size)
    net = network("resnet18", images, width=3, scale_invariant=scale_invariant)
    weights = dict(net.named_parameters())
    with torch.no_grad():
        for number, (name, parameter) in enumerate(weights.items()):
            if "norm" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(number))
    torch.testing.assert_close(net(images), resnet_scores(images, weights, 3), rtol=1e-6, atol=1e-6)


def test_small_images_are_pooled_to_one_pixel():
    images = random_images(8)
    net = network("resnet18", images, width=3)
    assert net.head.weight.shape == (10, 24)
    assert network("convnet", images, width=3).head.weight.shape == (10, 24)


@pytest.mark.parametrize("model", ["convnet", "resnet18"])
def test_heads_depend_on_the_seed_only_if_asked(model):
    images = random_images(8)

    def heads(**settings):
        nets = [network(model, images, width=3, seed=seed, **settings) for seed in (0, 1)]
        return [torch.cat([p.flatten() for p in net.head.parameters()]) for net in nets]

    one, other = heads()
    assert torch.equal(one, other)
    one, other = heads(seeded_head=True)
    assert not torch.equal(one, other)
    assert not torch.equal(one, heads()[0])


def test_the_head_has_a_bias_as_in_the_published_code():
    images = random_images(8)
    for scale_invariant in (True, False):
        assert network("convnet", images, scale_invariant=scale_invariant).head.bias is not None
        assert network("resnet18", images, width=3, scale_invariant=scale_invariant).head.bias is None
