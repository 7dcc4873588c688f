import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from empirical.config import RunConfig
from empirical.networks import BatchNorm, build_network, infer, record_statistics
from empirical.networks.inference import _stages
from empirical.networks.normalization import fuse_layers

MODELS = st.sampled_from(["mlp", "convnet", "resnet18", "transformer"])
SIZES = st.tuples(st.integers(8, 13), st.integers(8, 13))


def random_network(model, size, *, depth=None, affine=False, seed=0):
    """Network in float64 with random γ and β of either sign, and 150 images."""
    torch.manual_seed(seed)
    images = torch.randn(150, 3, *size, dtype=torch.float64)
    config = RunConfig(lr=0.1, wd=0.01, model=model, width=4, depth=depth, scale_invariant=not affine, dtype="float64")
    network = build_network(config, images, 5)
    for layer in network.modules():
        if isinstance(layer, BatchNorm) and affine:
            nn.init.normal_(layer.gamma)
            nn.init.normal_(layer.beta)
    return network.eval(), images


def plain_outputs(network, samples, batch):
    """Outputs for samples with the statistics of a batch."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        with record_statistics(network):
            network(batch)
        return network(samples)


@given(MODELS, SIZES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=25)
def test_outputs_are_those_of_the_forward_pass(model, size, affine, is_fused, has_channels_last, seed):
    network, images = random_network(model, size, affine=affine, seed=seed)
    if is_fused:
        fuse_layers(network)
    assert bool(_stages(network, torch.as_tensor)) == (model in ("mlp", "convnet"))
    if has_channels_last:
        images = images.to(memory_format=torch.channels_last)
    batch, others = images[:130], images[130:]
    with record_statistics(network):
        recorded = infer(network, batch)
    torch.testing.assert_close(recorded, plain_outputs(network, batch, batch), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(infer(network, others), plain_outputs(network, others, batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_convnets_of_any_depth(depth):
    network, images = random_network("convnet", (32, 32), depth=depth)
    with record_statistics(network):
        recorded = infer(network, images)
    torch.testing.assert_close(recorded, plain_outputs(network, images, images), rtol=1e-9, atol=1e-9)


def test_statistics_in_float32_are_as_precise_as_of_the_forward_pass():
    # pixels with a mean of 30 standard deviations: squares minus squared means would lose three digits
    network, images = random_network("convnet", (32, 32))
    images = (30 + images).float()
    exact = plain_outputs(network, images.double(), images.double())
    network.float()
    with record_statistics(network):
        error = (infer(network, images) - exact).abs().max()
    plain_error = (plain_outputs(network, images, images) - exact).abs().max()
    assert error <= 2 * plain_error


def test_layers_that_mix_samples_see_all_of_them():
    class Centre(nn.Module):
        def forward(self, values):
            return values - values.mean(0)

    network, images = random_network("mlp", (8, 8))
    network = nn.Sequential(network[0], Centre(), *network[1:])
    with torch.no_grad():
        with record_statistics(network):
            network(images)
        torch.testing.assert_close(infer(network, images), network(images))
        # control: parts with their own means differ
        parts = torch.cat([network(part) for part in images.split(64)])
    assert (infer(network, images) - parts).abs().max() > 0.01


def test_one_pooling_layer_may_be_used_several_times():
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm(4), relu, pool, nn.Conv2d(4, 4, 3), relu, pool, pool)
    images = torch.randn(70, 3, 32, 32)
    with record_statistics(network.eval()):
        recorded = infer(network, images)
    torch.testing.assert_close(recorded, plain_outputs(network, images, images))


def test_a_model_in_train_mode_uses_the_statistics_of_the_batch():
    network, images = random_network("convnet", (8, 8))
    torch.testing.assert_close(infer(network.train(), images), network(images).detach())


def test_a_transform_maps_the_samples():
    network, images = random_network("convnet", (8, 8))
    with record_statistics(network):
        transformed = infer(network, images, lambda part: part.flip(3))
    torch.testing.assert_close(transformed, plain_outputs(network, images.flip(3), images.flip(3)))


def test_no_gradients_and_no_changed_inputs():
    network, images = random_network("convnet", (8, 8))
    before = images.clone()
    with record_statistics(network):
        assert not infer(network, images).requires_grad
    assert torch.equal(images, before)


def test_an_overflow_remains_visible():
    network, images = random_network("convnet", (8, 8))
    images[140] = torch.inf
    with record_statistics(network):
        assert infer(network, images).isnan().any()
