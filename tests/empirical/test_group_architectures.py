"""Scale-invariant groups of many architectures, compared with theory and with direct scaling in double precision."""

import copy
import dataclasses
import itertools
import os
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from empirical.groups import scale_invariant_groups, scaling_symmetries

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 11, (16, 12), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
INVARIANT, CHANGED = 1e-9, 1e-6


def members(model, inputs=ROWS, **options):
    return [group.weights for group in scale_invariant_groups(model, inputs, **options).values()]


def sets_of(groups):
    return {frozenset(group) for group in groups}


def matching(model, *endings):
    """Names of the parameters with one of the endings."""
    return [name for name, _ in model.named_parameters() if name.endswith(endings)]


def tensors_of(output):
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() or output.is_complex() else []
    if isinstance(output, dict):
        return tensors_of(output["logits"]) if "logits" in output else tensors_of(list(output.values()))
    return [tensor for item in output for tensor in tensors_of(item)]


def doubled(inputs):
    if isinstance(inputs, torch.Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: doubled(value) for key, value in inputs.items()}
    return tuple(doubled(value) for value in inputs)


class PlainModel:
    """Model in double precision with random weights, every ε of its modules tiny, without the code under test."""

    def __init__(self, model, inputs):
        self.model, self.inputs = copy.deepcopy(model).double().train(), doubled(inputs)
        for module in self.model.modules():
            for name, value in vars(module).items():
                if isinstance(value, float) and ("eps" in name or name == "fudge"):
                    setattr(module, name, 1e-30)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in self.parameters.values():
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 1 + 0.5 * torch.tanh(noise))
        self.reference = self.output()

    @torch.no_grad()
    def output(self):
        torch.manual_seed(0)  # equal dropout
        if isinstance(self.inputs, dict):
            output = self.model(**self.inputs)
        else:
            output = self.model(*self.inputs) if isinstance(self.inputs, tuple) else self.model(self.inputs)
        return torch.cat([tensor.reshape(-1) for tensor in tensors_of(output)])

    @torch.no_grad()
    def change(self, names, factor=2.0):
        """Largest relative change of the output when the named parameters are scaled."""
        before = {name: self.parameters[name].clone() for name in names}
        for name in names:
            self.parameters[name].mul_(factor)
        difference = self.output() - self.reference
        for name, value in before.items():
            self.parameters[name].copy_(value)
        return float(difference.abs().max() / self.reference.abs().max())

    @torch.no_grad()
    def is_inert(self, name):
        """Whether other values of a parameter, of the same signs, leave the output as it is."""
        parameter = self.parameters[name]
        before = parameter.clone()
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        parameter.mul_(noise.exp())
        difference = self.output() - self.reference
        parameter.copy_(before)
        return float(difference.abs().max() / self.reference.abs().max()) < INVARIANT


def check_groups(model, inputs, *expected, invariant=INVARIANT, changed=CHANGED):
    """Compare the groups with `expected`, and `expected` with direct scaling."""
    assert sets_of(members(model, inputs)) == sets_of(expected)
    plain = PlainModel(model, inputs)
    for group in expected:
        assert plain.change(group) < invariant
        assert plain.change(group, 1 / 3) < invariant
        for name in group if len(group) > 1 else ():
            assert plain.change([name]) > changed, name
    grouped = set(itertools.chain(*expected))
    for name, parameter in plain.parameters.items():
        if name not in grouped and parameter.ndim > 1 and not plain.is_inert(name):
            assert plain.change([name]) > changed, name


# GPTs --------------------------------------------------------------------------------------------------------------


class GptBlock(nn.Module):
    def __init__(self, width, heads, has_qk_norm, has_bias):
        super().__init__()
        self.heads, self.n1, self.n2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=has_bias) for _ in "qkvo")
        self.up, self.down = nn.Linear(width, 2 * width, bias=has_bias), nn.Linear(2 * width, width, bias=has_bias)
        self.qn, self.kn = (nn.RMSNorm(width // heads) if has_qk_norm else nn.Identity() for _ in "qk")

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x):
        z = self.n1(x)
        q, k, v = self.qn(self.split(self.q(z))), self.kn(self.split(self.k(z))), self.split(self.v(z))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.n2(x))))


class Gpt(nn.Module):
    def __init__(self, layers, has_qk_norm, has_bias, is_tied=False, vocabulary=11, width=8):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList([GptBlock(width, 2, has_qk_norm, has_bias) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if is_tied:
            self.head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def check_gpt(layers, has_qk_norm, has_bias):
    torch.manual_seed(0)
    model = Gpt(layers, has_qk_norm, has_bias)
    stream = matching(model, "wte.weight", "wpe.weight", ".o.weight", ".o.bias", "down.weight", "down.bias")
    alone = []
    if has_qk_norm:
        # weight and bias before a QK-norm; without a bias the weight alone
        for block, matrix in itertools.product(range(layers), "qk"):
            alone.append(matching(model, f"blocks.{block}.{matrix}.weight", f"blocks.{block}.{matrix}.bias"))
    check_groups(model, TOKENS, stream, *alone)


@pytest.mark.parametrize(
    ("layers", "has_qk_norm", "has_bias"), [(1, False, False), (2, False, True), (3, True, True), (5, True, False)]
)
def test_gpt(layers, has_qk_norm, has_bias):
    check_gpt(layers, has_qk_norm, has_bias)


@pytest.mark.acceptance
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_qk_norm", [False, True])
@pytest.mark.parametrize("layers", [*range(1, 13), 24, 48])
def test_gpt_of_every_depth(layers, has_qk_norm, has_bias):
    check_gpt(layers, has_qk_norm, has_bias)


@pytest.mark.acceptance
def test_gpt_in_a_fresh_process():
    code = "from tests.empirical.test_group_architectures import check_gpt; check_gpt(3, True, True)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpt_with_tied_embeddings_has_no_group():
    check_groups(Gpt(2, False, False, is_tied=True), TOKENS)


# normalizations ----------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """Normalization whose ε has one of many names, or is a number in the code. `is_plain` makes the latter tiny."""

    KINDS = ("layer", "rms", "batch", "native_layer", "native_rms", "native_batch", "functional", "std_added", "l2")

    def __init__(self, width, kind="rms", eps_name="eps", is_affine=True):
        super().__init__()
        self.kind, self.eps_name, self.is_plain = kind, eps_name, False
        if eps_name != "in the code":
            setattr(self, eps_name, 1e-6)
        if kind.startswith("native"):
            native = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d}[kind[7:]]
            affine = "affine" if native is nn.BatchNorm1d else "elementwise_affine"
            self.native = native(width, **{affine: is_affine})
        elif is_affine:
            self.weight = nn.Parameter(torch.ones(width))
            if kind in ("layer", "batch", "functional"):
                self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        if self.kind.startswith("native"):
            return self.native(x)
        eps = (1e-30 if self.is_plain else 1e-5) if self.eps_name == "in the code" else getattr(self, self.eps_name)
        weight, bias = getattr(self, "weight", 1.0), getattr(self, "bias", 0.0)
        match self.kind:
            case "functional":
                return functional.layer_norm(x, x.shape[-1:], None, None, eps) * weight + bias
            case "layer":
                y = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps)
            case "rms":
                y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
            case "batch":
                y = (x - x.mean(0)) * (x.var(0, unbiased=False).add(eps)).rsqrt()
            case "std_added":
                y = x / (eps + x.std(-1, keepdim=True))
            case "l2":
                y = x / x.norm(dim=-1, keepdim=True).clamp(min=eps)
        return y * weight + bias


@pytest.mark.parametrize("eps_name", ["eps", "variance_epsilon", "epsilon", "fudge", "in the code"])
@pytest.mark.parametrize("kind", Norm.KINDS)
def test_normalizations(kind, eps_name):
    model = nn.Sequential(nn.Linear(6, 8, bias=False), Norm(8, kind, eps_name), nn.ReLU(), nn.Linear(8, 3))
    assert members(model) == [("0.weight",)]


def discriminator(normalize):
    layers = [normalize(nn.Linear(6, 8)), nn.LeakyReLU(0.1), normalize(nn.Linear(8, 8)), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("normalize", "ending"),
    [
        (nn.utils.parametrizations.spectral_norm, "original"),
        (nn.utils.spectral_norm, "weight_orig"),
        (nn.utils.parametrizations.weight_norm, "original1"),
        (nn.utils.weight_norm, "weight_v"),
    ],
)
def test_weights_that_are_normalized(normalize, ending):
    model = discriminator(normalize)
    model(ROWS)  # the old weight_norm then holds a tensor with a graph
    before = copy.deepcopy(model.state_dict())
    assert members(model) == [(name,) for name in matching(model, ending)]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


class Normalized(nn.Module):
    """Linear layer, normalization, ReLU, head. Subclasses change the forward pass."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def logits(self, x):
        return self.head(functional.relu(self.norm(self.linear(x))))

    def forward(self, x):
        return self.logits(x)


LINEAR = [("linear.weight",)]


def with_forward(forward, prepare=None):
    """Make a `Normalized` model with another forward pass."""

    class Changed(Normalized):
        def __init__(self):
            super().__init__()
            if prepare:
                prepare(self)

        def forward(self, *args, **kwargs):
            return forward(self, *args, **kwargs)

    return Changed()


def test_a_frozen_normalization_gives_no_group():
    model = Normalized()
    model(ROWS)
    model.norm.eval()
    assert members(model) == []
    model.eval()  # the whole model in eval mode is measured in train mode
    assert members(model) == LINEAR
    assert not model.training
    assert not model.norm.training


def test_a_weight_is_found_where_compiled_code_hides_eps():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    assert members(torch.jit.script(model)) == [("0.weight",)]


def test_a_weight_with_bias_is_no_group_alone_where_compiled_code_hides_eps():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    assert ("0.weight",) not in members(torch.jit.script(model))


class UnitNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        norm = x.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(x / norm, norm)
        return x / norm

    @staticmethod
    def backward(ctx, gradient):
        y, norm = ctx.saved_tensors
        return (gradient - y * (gradient * y).sum(-1, keepdim=True)) / norm


def test_a_normalization_with_its_own_derivative():
    model = with_forward(lambda self, x: self.head(UnitNorm.apply(self.linear(x))))
    assert members(model) == [("linear.weight", "linear.bias")]


def test_a_standard_deviation_without_derivative_is_no_normalization():
    # the output is invariant, but the gradient is not orthogonal to the weights
    def forward(self, x):
        z = self.linear(x)
        return self.head(z / z.std(0).detach())

    assert members(with_forward(forward)) == []


# architectures -----------------------------------------------------------------------------------------------------


class LlamaRms(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x):
        x32 = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


def rotate(x):
    angles = torch.outer(torch.arange(x.shape[-2]), 1.0 / 100 ** torch.linspace(0, 1, x.shape[-1] // 2)).to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Attention(nn.Module):
    def __init__(self, width, heads=2, kv_heads=2, has_bias=False, is_rotary=False):
        super().__init__()
        self.size, self.is_rotary = width // heads, is_rotary
        self.q, self.o = nn.Linear(width, width, bias=has_bias), nn.Linear(width, width, bias=has_bias)
        self.k, self.v = (nn.Linear(width, kv_heads * self.size, bias=has_bias) for _ in "kv")

    def forward(self, x, context=None, bias=None):
        context = x if context is None else context
        q, k, v = (
            layer(z).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for layer, z in ((self.q, x), (self.k, context), (self.v, context))
        )
        k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], 1) for z in (k, v))
        if self.is_rotary:
            q, k = rotate(q), rotate(k)
        scores = q @ k.transpose(-1, -2) / self.size**0.5
        return self.o((torch.softmax(scores if bias is None else scores + bias, -1) @ v).transpose(1, 2).flatten(2))


class Llama(nn.Module):
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm1, self.norm2 = LlamaRms(width), LlamaRms(width)
            self.attention = Attention(width, 4, 2, is_rotary=True)
            self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((16, 24), (16, 24), (24, 16)))

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            z = self.norm2(x)
            return x + self.down(functional.silu(self.gate(z)) * self.up(z))

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 16), nn.Sequential(*(self.Block(16) for _ in range(2)))
        self.norm, self.head = LlamaRms(16), nn.Linear(16, 11, bias=False)

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids))))


def test_llama():
    model = Llama()
    check_groups(model, TOKENS, matching(model, "embed.weight", ".o.weight", "down.weight"))


class PostNorm(nn.Module):
    """Post-LN transformer as BERT, with or without a normalization of the embeddings."""

    def __init__(self, has_embedding_norm):
        super().__init__()
        self.word, self.position = nn.Embedding(11, 8), nn.Parameter(torch.randn(12, 8))
        self.embedding_norm = nn.LayerNorm(8) if has_embedding_norm else nn.Identity()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.layer(self.embedding_norm(self.word(ids) + self.position)))


def test_post_norm_transformer():
    check_groups(PostNorm(True), TOKENS, ["word.weight", "position"])
    check_groups(PostNorm(False), TOKENS)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut, self.norm3 = nn.Conv2d(8, 8, 1, 2, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        x = functional.relu(self.norm0(self.stem(x)))
        x = functional.relu(
            self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))) + self.norm3(self.shortcut(x))
        )
        return self.head(x.mean((2, 3)))


def test_resnet():
    names = ("stem", "conv1", "conv2", "shortcut")
    check_groups(ResNet(), IMAGES, *([f"{name}.weight"] for name in names))


class ConvNext(nn.Module):
    class Block(nn.Module):
        def __init__(self, has_bias):
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=has_bias), nn.LayerNorm(8)
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
            self.layer_scale = nn.Parameter(torch.full((8,), 1e-6))

        def forward(self, x):
            z = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            return x + (self.layer_scale * self.narrow(functional.gelu(self.wide(z)))).permute(0, 3, 1, 2)

    def __init__(self, has_bias):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.blocks = nn.Sequential(self.Block(has_bias), self.Block(has_bias))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks(self.norm0(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.head(self.norm(x.mean((2, 3))))


def test_convnext():
    stem = ["stem.weight", "stem.bias"]
    depthwise = [[f"blocks.{i}.depthwise.weight", f"blocks.{i}.depthwise.bias"] for i in (0, 1)]
    check_groups(ConvNext(True), IMAGES, stem, *depthwise)
    model = ConvNext(False)
    # either layer_scale or weight and bias of each block; the smallest set with a matrix whose parameters come last
    narrow = ["blocks.1.narrow.weight", "blocks.1.narrow.bias"]
    stream = ["norm0.weight", "norm0.bias", "blocks.0.layer_scale", *narrow]
    check_groups(model, IMAGES, stem, stream, *(names[:1] for names in depthwise))


class UNet(nn.Module):
    def __init__(self, groups, has_raw_skip=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.GroupNorm(2, 4)
        self.up, self.norm3 = nn.ConvTranspose2d(4, 4, 2, 2, bias=False), nn.GroupNorm(groups, 8)
        self.conv3, self.norm4 = nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
        self.head, self.has_raw_skip = nn.Conv2d(4, 2, 1), has_raw_skip

    def forward(self, x):
        raw = self.conv1(x)
        skip = functional.silu(self.norm1(raw))
        joined = torch.cat(
            [self.up(functional.silu(self.norm2(self.conv2(skip)))), raw if self.has_raw_skip else skip], 1
        )
        return self.head(functional.silu(self.norm4(self.conv3(functional.silu(self.norm3(joined))))))


def test_unet():
    singles = [["conv1.weight"], ["conv2.weight"], ["conv3.weight"]]
    # one normalization of upsampled features and of a skip connection that does not scale with them
    check_groups(UNet(1), IMAGES, *singles)
    # normalized separately
    check_groups(UNet(2), IMAGES, *singles, ["up.weight"])
    # both parts scale
    check_groups(UNet(1, True), IMAGES, *singles[1:], ["conv1.weight", "up.weight"])


class Vit(nn.Module):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2, self.attention = nn.LayerNorm(8), nn.LayerNorm(8), Attention(8, has_bias=True)
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))

    def __init__(self):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(self.Block(), self.Block())
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def test_vit():
    model = Vit()
    endings = ("token", "position", "patch.weight", "patch.bias", ".o.weight", ".o.bias", "narrow.weight")
    check_groups(model, IMAGES, matching(model, *endings, "narrow.bias"))


class NormLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_input, self.of_state = nn.Linear(6, 16, bias=False), nn.Linear(4, 16, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h, c = torch.zeros(len(x), 4), torch.zeros(len(x), 4)
        for step in x.unbind(1):
            i, f, o, z = (self.norm1(self.of_input(step)) + self.norm2(self.of_state(h.to(x)))).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(self.norm3(c.to(x)))
        return self.head(h)


def test_lstm():
    inputs = torch.randn(10, 4, 6, generator=torch.Generator().manual_seed(0))
    check_groups(NormLstm(), inputs, ["of_input.weight"], ["of_state.weight"])


class T5(nn.Module):
    class Block(nn.Module):
        def __init__(self, is_decoder):
            super().__init__()
            self.norm1, self.norm2, self.norm3 = (LlamaRms(8) for _ in range(3))
            self.own, self.cross = Attention(8), Attention(8) if is_decoder else None
            self.wide, self.narrow = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)

        def forward(self, x, bias, context=None):
            x = x + self.own(self.norm1(x), bias=bias)
            if self.cross:
                x = x + self.cross(self.norm2(x), context)
            return x + self.narrow(functional.relu(self.wide(self.norm3(x))))

    def __init__(self, is_tied):
        super().__init__()
        self.shared, self.relative = nn.Embedding(11, 8), nn.Embedding(24, 2)
        self.encoder, self.decoder = self.Block(False), self.Block(True)
        self.norm1, self.norm2 = LlamaRms(8), LlamaRms(8)
        self.head = nn.Linear(8, 11, bias=False)
        if is_tied:
            self.head.weight = self.shared.weight

    def bias(self, length):
        steps = torch.arange(length)
        return self.relative(steps[:, None] - steps + 12).permute(2, 0, 1)

    def forward(self, input_ids, decoder_input_ids):
        context = self.norm1(self.encoder(self.shared(input_ids), self.bias(input_ids.shape[1])))
        x = self.decoder(self.shared(decoder_input_ids), self.bias(decoder_input_ids.shape[1]), context)
        return {"logits": self.head(self.norm2(x))}


class Experts(nn.Module):
    """Residual mixture of experts, of which each sample uses two."""

    def __init__(self):
        super().__init__()
        self.stem, self.router = nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(4)])
        self.norm1, self.norm2, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        z = self.norm1(x)
        shares, chosen = self.router(z).softmax(-1).topk(2, -1)
        for number, expert in enumerate(self.experts):
            x = x + (shares * (chosen == number)).sum(-1, keepdim=True) * expert(z)
        return self.head(self.norm2(x))


class CosineHead(nn.Module):
    """Two linear layers and class vectors that are compared by their cosine, with a learned temperature."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.classes, self.temperature = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        z = self.second(functional.relu(self.first(x)))
        return self.temperature.exp() * functional.cosine_similarity(z[:, None], self.classes, dim=-1)


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


def test_other_architectures():
    check_groups(Experts(), ROWS, ["stem.weight", *(f"experts.{number}.weight" for number in range(4))])
    check_groups(CosineHead(), ROWS, ["first.weight"], ["second.weight"], ["classes"])
    model = nn.Sequential(StandardizedConv(3, 4, 3), nn.ReLU(), StandardizedConv(4, 4, 3), nn.Conv2d(4, 2, 3))
    assert members(model, IMAGES) == [("0.weight",), ("2.weight",)]


def test_t5():
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5].flip(0)}
    model = T5(False)
    check_groups(model, inputs, matching(model, "shared.weight", ".o.weight", "narrow.weight"))
    check_groups(T5(True), inputs)


class Ngpt(nn.Module):
    """Weights and activations are normalized, as in nGPT."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Parameter(torch.randn(*shape)) for shape in ((11, 8), (16, 8), (8, 16), (11, 8))
        )
        self.alpha, self.scale = nn.Parameter(torch.full((8,), 0.05)), nn.Parameter(torch.ones(11))

    def forward(self, ids):
        unit = partial(functional.normalize, dim=-1)
        x = functional.embedding(ids, unit(self.embed))
        branch = unit(functional.linear(functional.silu(functional.linear(x, unit(self.up))), unit(self.down)))
        x = unit(x + self.alpha * (branch - x))
        return functional.linear(x, unit(self.head)) * self.scale


def test_ngpt():
    check_groups(Ngpt(), TOKENS, ["embed"], ["up"], ["down"], ["head"])


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm1, self.norm2, self.norm3 = nn.Conv2d(3, 8, 4, 4), *(nn.LayerNorm(8) for _ in range(3))
        self.token1, self.token2 = nn.Linear(4, 6), nn.Linear(6, 4)
        self.channel1, self.channel2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.token2(functional.gelu(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel2(functional.gelu(self.channel1(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


def test_mlp_mixer():
    # the bias of the tokens is equal in all channels, and LayerNorm subtracts their mean
    stream = ["patch.weight", "patch.bias", "token2.weight", "channel2.weight", "channel2.bias"]
    check_groups(Mixer(), IMAGES, stream)


# models of transformers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def test_llama_of_transformers(transformers):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    for is_tied in (False, True):
        config = transformers.LlamaConfig(vocab_size=11, num_key_value_heads=2, tie_word_embeddings=is_tied, **sizes)
        model = transformers.LlamaForCausalLM(config)
        stream = matching(model, "embed_tokens.weight", "o_proj.weight", "down_proj.weight")
        # this RMSNorm computes in single precision
        check_groups(model, {"input_ids": TOKENS}, *([] if is_tied else [stream]), invariant=1e-5, changed=1e-4)


def test_gpt2_of_transformers(transformers):
    for is_tied in (False, True):
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=is_tied,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        stream = matching(model, "wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")
        inputs = {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
        check_groups(model, inputs, *([] if is_tied else [stream]))


def test_vit_of_transformers(transformers):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **sizes))
    alone = ("query", "key", "value", "intermediate", "classifier", "layernorm", "fc1", "_before", "_after")
    alone = (*alone, "q_proj", "k_proj", "v_proj")
    stream = [name for name, _ in model.named_parameters() if not any(part in name for part in alone)]
    check_groups(model, {"pixel_values": IMAGES}, stream)


def test_bert_of_transformers(transformers):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=16, tie_word_embeddings=False, **sizes)
    inputs = {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long()}  # padding in any place
    for kind in (transformers.BertForSequenceClassification, transformers.BertForTokenClassification):
        model = kind(config)
        check_groups(model, inputs, matching(model, "_embeddings.weight"))


def test_experts_of_transformers(transformers):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.MixtralConfig(vocab_size=11, num_key_value_heads=2, num_local_experts=4, **sizes)
    config._experts_implementation = "eager"  # the fast one has no double precision
    model = transformers.MixtralForCausalLM(config)
    stream = matching(model, "embed_tokens.weight", "o_proj.weight", "down_proj")
    assert sets_of(members(model, {"input_ids": TOKENS})) == {frozenset(stream)}


def test_t5_of_transformers(transformers):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 11}
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5].flip(0)}
    for is_tied in (False, True):
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(tie_word_embeddings=is_tied, **sizes))
        stream = matching(model, "shared.weight", ".o.weight", "wo.weight")
        is_head_tied = model.lm_head.weight is model.shared.weight
        check_groups(model, inputs, *([] if is_head_tied else [stream]))


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


# signatures of forward ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    extra: tuple = ()


OUTPUTS = {
    "tuple": lambda y, x: (y, x),
    "list with None": lambda y, x: [None, y, {"input": [x]}],
    "dict": lambda y, x: {"logits": y},
    "data class": lambda y, x: Output(y, (x,)),
    "scalar loss": lambda y, x: y.square().mean(),
    "losses": lambda y, x: functional.log_softmax(y, 1)[:, :1],
    "integers too": lambda y, x: (y.argmax(1), y),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs(kind):
    assert members(with_forward(lambda self, x: OUTPUTS[kind](self.logits(x), x))) == LINEAR


def test_inputs():
    add = with_forward(lambda self, x, t: self.logits(x + t))
    assert members(add, (ROWS, ROWS)) == members(add, [ROWS, ROWS]) == members(add, {"t": ROWS, "x": ROWS}) == LINEAR
    # one row for all samples, a number, and an option
    assert members(add, (ROWS, ROWS[0])) == members(add, (ROWS, 1.0)) == LINEAR
    option = with_forward(lambda self, x, *, scale=None: self.logits(x if scale is None else scale * x))
    assert members(option, {"x": ROWS, "scale": None}) == members(option, {"x": ROWS, "scale": 2}) == LINEAR
    # tensors in containers, as a batch of a data loader
    nested = with_forward(lambda self, batch: self.logits(batch["x"] + batch["more"][0]))
    assert members(nested, ({"x": ROWS, "more": [ROWS]},)) == LINEAR


def test_images_of_bytes():
    images = torch.randint(0, 255, (8, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert members(model, images) == [("1.weight",)]


def test_inputs_that_cannot_be_divided():
    edges = torch.randint(0, 32, (2, 60), generator=torch.Generator().manual_seed(0))

    def graph(self, x, edges):
        z = functional.linear(x, self.linear.weight)
        return self.head(functional.relu(self.norm(z.index_add(0, edges[1], z[edges[0]]))))

    assert members(with_forward(graph), (ROWS, edges)) == LINEAR
    # as many tokens as samples: an axis of the mask looks like the axis of samples
    model = with_forward(
        lambda self, x, mask: self.head(functional.layer_norm(self.attention(x, x, x, attn_mask=mask)[0], (6,)))
    )
    model.attention, model.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)
    inputs = torch.randn(8, 8, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 8)
    assert members(model, inputs) == [("attention.out_proj.weight", "attention.out_proj.bias")]


def test_wrong_inputs():
    for inputs in (ROWS[:, :5], (ROWS, ROWS), {"y": ROWS}):
        with pytest.raises(ValueError, match=r"^model must accept inputs") as error:
            scale_invariant_groups(Normalized(), inputs)
        assert "\n" not in str(error.value)
    for inputs in ("text", None, {}, (), np.zeros((3, 6)), (1.0, 2.0), [torch.tensor(1.0)]):
        with pytest.raises(ValueError, match=r"^inputs must be a tensor of at least 2 samples"):
            scale_invariant_groups(Normalized(), inputs)
    with pytest.raises(TypeError, match="must return floating-point tensors"):
        scale_invariant_groups(with_forward(lambda self, x: None), ROWS)
    with pytest.raises(ValueError, match="finite"):
        scale_invariant_groups(with_forward(lambda self, x: self.logits(x) / 0), ROWS)
    with pytest.raises(ValueError, match="lazy parameters"):
        scale_invariant_groups(nn.Sequential(nn.LazyLinear(8)), ROWS)


def test_models_without_groups():
    assert scale_invariant_groups(nn.Flatten(), ROWS) == {}
    assert scale_invariant_groups(Normalized().requires_grad_(False), ROWS) == {}
    model = Normalized()
    model.unused = nn.Linear(3, 3)
    assert members(model) == LINEAR
    # a part without gradient: its weights are in no group, whatever scaling does to the output
    detached = with_forward(lambda self, x: self.logits(x) + self.extra(x).detach())
    detached.extra = nn.Linear(6, 3)
    assert members(detached) == LINEAR


# numbers and types in the code -------------------------------------------------------------------------------------


def in_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.logits(x).float()


CASTS = {
    "float": lambda self, x: self.logits(x.float()).float(),
    "to": lambda self, x: self.head(
        functional.relu(self.norm(self.linear(x)).to(torch.bfloat16)).to(dtype=torch.float32)
    ),
    "type": lambda self, x: self.head(
        functional.relu(self.norm(self.linear(x)).type(torch.HalfTensor)).type("torch.FloatTensor")
    ),
    "type_as": lambda self, x: self.head(functional.relu(self.norm(self.linear(x)).type_as(torch.zeros(1)))),
    "softmax": lambda self, x: self.head(torch.softmax(self.norm(self.linear(x)), 1, dtype=torch.float32)),
    "autocast": in_autocast,
    "float of a mask": lambda self, x: self.logits(x @ torch.eye(6).bool().float()),
    "type of integers": lambda self, x: self.logits(x @ torch.eye(6).long().type(torch.FloatTensor)),
    "zeros": lambda self, x: torch.zeros(len(x), 3).add(self.logits(x)) + torch.ones(3, dtype=torch.float32),
    "NumPy": lambda self, x: self.logits(x @ torch.from_numpy(np.eye(6, dtype=np.float32))),
    "checkpoint": lambda self, x: checkpoint(self.logits, x, use_reentrant=False),
    "old checkpoint": lambda self, x: checkpoint(self.logits, x.requires_grad_(), use_reentrant=True),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_and_constants(cast):
    torch.manual_seed(0)
    assert members(with_forward(CASTS[cast])) == LINEAR


def test_a_tensor_that_is_no_buffer():
    model = with_forward(lambda self, x: self.logits(x @ self.rotation))
    model.rotation = torch.randn(6, 6)
    assert members(model) == LINEAR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_in_other_precisions(dtype):
    assert members(Normalized().to(dtype), ROWS.to(dtype)) == LINEAR


def test_a_small_factor_is_no_eps():
    # both matrices are scaled together, although the second one adds only a thousandth
    def forward(self, x):
        return self.head(functional.layer_norm(torch.add(self.linear(x), self.extra(x), alpha=1e-3), (8,)))

    model = with_forward(forward)
    model.extra = nn.Linear(6, 8, bias=False)
    assert members(model) == [("linear.weight", "linear.bias", "extra.weight")]


def test_joint_groups_from_few_outputs():
    class Deep(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.stem, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, outputs)
            self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(6)])

        def forward(self, x):
            x = self.stem(x)
            for layer in self.layers:
                x = x + layer(functional.relu(functional.layer_norm(x, (8,))))
            return self.head(functional.layer_norm(x, (8,)))

    stream = ["stem.weight", *(f"layers.{number}.weight" for number in range(6))]
    for outputs in (1, 2, 3):
        torch.manual_seed(0)
        assert sets_of(members(Deep(outputs))) == {frozenset(stream)}


def test_sparse_gradients_and_bounded_embeddings():
    for options in ({"sparse": True}, {"max_norm": 1.0}, {"padding_idx": 0}):
        model = nn.Sequential(nn.Embedding(11, 8, **options), nn.LayerNorm(8), nn.Linear(8, 3))
        assert members(model, TOKENS) == [("0.weight",)]


def test_a_gradient_in_the_forward_pass():
    def forces(self, x):
        x = x.detach().requires_grad_()
        energy = functional.softplus(functional.layer_norm(self.linear(x), (8,))) @ self.head.weight.T
        return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    assert members(with_forward(forces)) == [("linear.weight", "linear.bias")]


def test_complex_weights():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6, dtype=torch.complex64))
            self.head = nn.Parameter(torch.randn(3, 8, dtype=torch.complex64))

        def forward(self, x):
            z = x.to(torch.complex64) @ self.weight.T
            return z / (z.abs().square().mean(-1, keepdim=True) + 1e-6).sqrt() @ self.head.T

    assert members(Complex()) == [("weight",)]


def test_without_derivatives_around():
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert members(Normalized()) == LINEAR


# state -------------------------------------------------------------------------------------------------------------


def random_states(model):
    """State of everything that a forward pass could change, as comparable values."""
    tensors = [tensor.tolist() for tensor in model.state_dict().values()]
    attributes = {
        name: value
        for name, value in vars(model).items()
        if isinstance(value, (int, list, type(None))) and not name.startswith("_")
    }
    generators = (
        model.torch_generator.get_state().tolist(),
        model.numpy_generator.bit_generator.state,
        model.python_generator.getstate(),
    )
    global_ones = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    modes = [module.training for module in model.modules()]
    options = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    return tensors, copy.deepcopy(attributes), generators, global_ones, modes, options


class Stateful(Normalized):
    """Random numbers of every kind, counters, and a state that is carried to the next pass."""

    def __init__(self):
        super().__init__()
        self.torch_generator, self.python_generator = torch.Generator().manual_seed(1), random.Random(1)
        self.numpy_generator, self.legacy_generator = np.random.default_rng(1), np.random.RandomState(1)
        self.passes, self.history, self.memory = 0, [], None
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        self.passes += 1
        self.count += 1
        self.history.append(self.passes)
        z = functional.dropout(functional.relu(self.norm(self.linear(x))), 0.2)
        noise = torch.randn(8, generator=self.torch_generator) + float(self.numpy_generator.normal())
        noise = noise + self.legacy_generator.normal() + self.python_generator.random() + random.random()
        z = z + noise + np.random.normal() + torch.rand(1)  # noqa: NPY002
        if self.memory is not None:
            z = z + self.memory
        self.memory = z.detach().mean(0)
        return self.head(z) * len(self.history) * self.passes * self.count


def test_nothing_changes():
    model = Stateful()
    model.norm.momentum = None
    model.head.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = random_states(model)
        assert members(model) == LINEAR
        scaling_symmetries(model, ROWS)
        assert str(random_states(model)) == str(before)
    finally:
        torch.set_num_threads(threads)
    assert all(p.grad is None for p in model.parameters())


def test_nothing_changes_after_an_error():
    model = Stateful()
    before = random_states(model)
    with pytest.raises(ValueError, match="accept inputs"):
        members(model, ROWS[:, :5])
    assert str(random_states(model)) == str(before)


def test_gradients_stay():
    model = Normalized()
    model(ROWS).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    members(model)
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), before, strict=True))


class Teacher(nn.Module):
    """Self-distillation: each pass moves a frozen teacher towards the student, as in MoCo and BYOL."""

    def __init__(self):
        super().__init__()
        self.student = Normalized()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for mean, parameter in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mean.mul_(0.9).add_(parameter, alpha=0.1)
            target = self.teacher(x)
        return self.student(x), target


def test_a_teacher_that_follows():
    model = Teacher()
    before = copy.deepcopy(model.state_dict())
    # the teacher's mean is of weights before and after scaling, so that the target is not invariant
    assert members(model) == []
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_hook_of_the_model_runs_in_the_copy():
    model = Normalized()
    handle = model.linear.register_forward_hook(
        lambda module, inputs, output: output / output.norm(dim=1, keepdim=True)
    )
    model.norm = nn.Identity()
    assert members(model) == [("linear.weight", "linear.bias")]
    handle.remove()
    assert members(model) == []


def test_pruned_weights():
    model = Normalized()
    prune.random_unstructured(model.linear, "weight", 0.3)
    model(ROWS).sum().backward()
    assert members(model) == [("linear.weight_orig",)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_synchronized_batch_norm(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(Normalized())
        assert members(model) == LINEAR
        assert isinstance(model.norm, nn.SyncBatchNorm)
        assert members(nn.parallel.DistributedDataParallel(Normalized())) == [("module.linear.weight",)]
    finally:
        torch.distributed.destroy_process_group()


def test_an_attribute_that_the_forward_pass_makes():
    def forward(self, x):
        self.passes = getattr(self, "passes", 0) + 1
        return self.logits(x) * self.passes

    model = with_forward(forward)
    assert members(model) == LINEAR
    assert not hasattr(model, "passes")


def test_passes_that_do_not_repeat():
    passes = itertools.count(1)
    with pytest.raises(ValueError, match=r"equal outputs in two equal passes, but they differ by [0-9.]+%"):
        members(with_forward(lambda self, x: self.logits(x) * next(passes)))


def test_equal_calls_give_equal_results():
    model = Gpt(1, True, True)
    assert scale_invariant_groups(model, TOKENS) == scale_invariant_groups(model, TOKENS)


# weights that are nearly invariant ---------------------------------------------------------------------------------


def large(model):
    """Scale the weights, so that bounded functions saturate and biases hardly matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(30)
    return model


class Concatenated(nn.Module):
    """Normalization of features that scale with the weights, and of the input, which does not."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(6, 8, bias=False), nn.Linear(14, 3)

    def forward(self, x):
        return self.head(functional.rms_norm(torch.cat([self.linear(x), x], 1), (14,)))


NEGATIVE = {
    "tanh": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "two tanh": nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
    "softsign": nn.Sequential(nn.Linear(6, 8, bias=False), nn.Softsign(), nn.Linear(8, 3)),
    "sigmoid": nn.Sequential(nn.Linear(6, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 3)),
    "softmax": nn.Sequential(nn.Linear(6, 8, bias=False), nn.Softmax(-1), nn.Linear(8, 3)),
    "hard tanh": nn.Sequential(nn.Linear(6, 8, bias=False), nn.Hardtanh(), nn.Linear(8, 3)),
    "concatenated": Concatenated(),
    "local response": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 3)),
}


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("name", NEGATIVE)
def test_saturation_is_no_invariance(name, is_large):
    model = copy.deepcopy(NEGATIVE[name])
    assert members(large(model) if is_large else model, IMAGES if name == "local response" else ROWS) == []


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_weight_with_bias_is_never_alone(is_compiled):
    for norm in (nn.LayerNorm(8), nn.GroupNorm(2, 8), Norm(8, "rms")):
        model = large(nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 3)))
        if is_compiled and not isinstance(norm, Norm):
            assert members(torch.jit.script(model)) == []
        else:
            assert members(model) == [("0.weight", "0.bias")]
