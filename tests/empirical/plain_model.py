"""Scaling of weights by hand, the oracle for scale-invariant groups, and networks that several tests share."""

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional

from empirical.groups import scale_invariant_groups

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
