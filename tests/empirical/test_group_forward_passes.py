"""Scale-invariant groups of models with all kinds of normalizations, signatures, types and states."""

import copy
import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from empirical.groups import scale_invariant_groups, scaling_symmetries
from tests.empirical.plain_model import IMAGES, ROWS, TOKENS, Gpt, Norm, matching, members, sets_of

pytestmark = pytest.mark.filterwarnings("ignore")


# normalizations ----------------------------------------------------------------------------------------------------


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
