import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory
from theory import derivations
from theory.adaptive import adam_direction_variance
from theory.optimizers import OPTIMIZERS, check_optimizer, format_optimizer

ROOT, PACKAGES = Path(__file__).parents[2], ("theory", "simulate", "empirical")
SGDS = [
    theory.SGD(),
    theory.SGD(momentum=0.9),
    theory.SGD(momentum=0.5, nesterov=True),
    theory.SGD(momentum=0.9, decoupled=True),
    theory.SGD(momentum=0.9, nesterov=True, decoupled=True),
]
VECTORS = [*SGDS, theory.Adam(dim=300), theory.AdamW(dim=300), theory.Lion(dim=300)]
ALL = [*VECTORS, theory.Muon(rows=15, columns=20)]
ids = {"ids": repr}


class LionOfThePaper(torch.optim.Optimizer):
    """Lion as in the pseudocode of arXiv 2302.06675."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((0.9 * m + 0.1 * p.grad).sign(), alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


def torch_optimizer(rule, weights, lr, wd):
    settings = {"lr": lr, "weight_decay": wd}
    if isinstance(rule, theory.Lion):
        return LionOfThePaper([weights], **settings)
    if isinstance(rule, theory.SGD):
        return torch.optim.SGD([weights], momentum=rule.momentum, nesterov=rule.nesterov, **settings)
    return getattr(torch.optim, type(rule).__name__)([weights], betas=rule.betas, eps=rule.eps, **settings)


@pytest.mark.parametrize("rule", [r for r in VECTORS if not getattr(r, "decoupled", False)], **ids)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.floats(1e-4, 1), st.floats(0, 1), st.integers(0, 1000))
def test_the_rule_is_that_of_torch(rule, lr, wd, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    ours, as_tensor = weights.detach().numpy().copy(), weights.detach().clone()
    state, tensor_state = rule.start(ours), rule.start(as_tensor)
    optimizer = torch_optimizer(rule, weights, lr, wd)
    for _ in range(5):
        gradient = torch.randn(7, generator=generator, dtype=torch.float64)
        weights.grad = gradient.clone()
        optimizer.step()
        ours, state = rule.update(ours, gradient.numpy(), state, lr, wd)
        as_tensor, tensor_state = rule.update(as_tensor, gradient, tensor_state, lr, wd)
    # the order of operations in float64 differs
    np.testing.assert_allclose(ours, weights.detach().numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(as_tensor.numpy(), ours, rtol=1e-9, atol=1e-12)


def test_decoupled_decay_is_a_plain_step_from_shrunk_weights():
    rule, plain = theory.SGD(momentum=0.9, decoupled=True), theory.SGD(momentum=0.9)
    x, g, v = np.array([1.0, -2.0]), np.array([0.5, 0.3]), np.array([0.1, 0.2])
    after, (velocity,) = rule.update(x, g, (v,), 0.1, 0.5)
    without, (other,) = plain.update(x, g, (v,), 0.1, 0.0)
    np.testing.assert_allclose(after, without - 0.1 * 0.5 * x)
    np.testing.assert_allclose(velocity, other)


@pytest.mark.parametrize("rule", ALL, **ids)
def test_text_form(rule):
    read = check_optimizer(format_optimizer(rule))
    assert read == rule == check_optimizer(rule)
    assert hash(read) == hash(rule)
    assert theory.equilibrium_norm(0.1, 0.01, optimizer=repr(rule)) == theory.equilibrium_norm(
        0.1, 0.01, optimizer=rule
    )
    assert OPTIMIZERS[type(rule).__name__] is type(rule)


@pytest.mark.parametrize("text", ["Sgd", "Sgd()", "SGD(0.9)", "SGD(momentum=", "__import__('os')", "1"])
def test_a_wrong_text_form_is_refused(text):
    with pytest.raises(ValueError, match=f"optimizer.*{re.escape(repr(text))}"):
        check_optimizer(text)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Lion"])
def test_a_name_alone_has_default_settings(kind):
    rule = check_optimizer(kind)
    assert rule == check_optimizer(f"{kind}()") == OPTIMIZERS[kind]()
    if kind != "SGD":
        assert theory.equilibrium_norm(0.1, 0.01, optimizer=OPTIMIZERS[kind](dim=9)) > 0
        with pytest.raises(ValueError, match=rf"optimizer.*dim.*{kind}\(dim"):
            theory.equilibrium_norm(0.1, 0.01, optimizer=rule)


def test_one_module_parses_the_text_of_an_optimizer():
    # everything else calls `check_optimizer`, which takes an object, None or the text
    texts = {path: path.read_text(encoding="utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    parsing = re.compile(r"(?<!def )_parse_optimizer\(|\bast\.parse\(")
    places = {path.relative_to(ROOT).as_posix(): parsing.findall(text) for path, text in texts.items()}
    assert {place: calls for place, calls in places.items() if calls} == {
        "theory/optimizers.py": ["ast.parse(", "_parse_optimizer("]
    }


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: theory.SGD(momentum=1.0), "momentum"),
        (lambda: theory.SGD(momentum=-0.1), "momentum"),
        (lambda: theory.SGD(nesterov=True), "nesterov"),
        (lambda: theory.SGD(momentum=0.5, nesterov=1), "nesterov"),
        (lambda: theory.AdamW(dim=0), "dim"),
        (lambda: theory.Adam(dim=10, betas=(0.9, 1.0)), "betas"),
        (lambda: theory.Lion(dim=10, betas=0.9), "betas"),
        (lambda: theory.AdamW(dim=10, eps=-1.0), "eps"),
    ],
)
def test_bad_settings_are_named(make, name):
    with pytest.raises((ValueError, TypeError), match=name):
        make()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("heavy_ball", {"momentum": 0.9}),
        ("nesterov", {"momentum": 0.9, "nesterov": True}),
        ("decoupled_heavy_ball", {"momentum": 0.7, "decoupled": True}),
        ("decoupled_nesterov", {"momentum": 0.7, "nesterov": True, "decoupled": True}),
    ],
)
@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.floats(1e-6, 0.99), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_momentum_formulas_are_the_derived_ones(name, rule, intrinsic_lr, lr, g):
    derived = getattr(derivations, name)
    values = {"lr": lr, "wd": intrinsic_lr / lr, "grad_norm": g, "momentum": rule["momentum"]}
    numbers = {derived.symbols[key]: value for key, value in values.items()}
    sgd = theory.SGD(**rule)
    # 1-s² loses the digits of ηλ in the derived form of the decoupled rules
    rel = 1e-12 / intrinsic_lr + 1e-12 if sgd.decoupled else 1e-11
    assert theory.equilibrium_norm(lr, intrinsic_lr / lr, g, optimizer=sgd) ** 4 == pytest.approx(
        float(derived[-1].rhs.subs(numbers)), rel=rel
    )
    turn = next(relation for relation in derived if relation.lhs == derived.symbols["turn"]).rhs
    angle = theory.equilibrium_rotation(lr, intrinsic_lr / lr, optimizer=sgd)
    assert 2 * np.sin(angle / 2) ** 2 == pytest.approx(float(turn.subs(numbers)), rel=1e-9)


def derived_value(derived, expression, **values):
    """Value of an expression of a derivation in 40 digits, with its definitions inserted."""
    for symbol, meaning in derived.definitions.items():
        expression = expression.subs(symbol, meaning)
    return float(expression.subs({derived.symbols[key]: sympy.Float(v, 40) for key, v in values.items()}).evalf(40))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.floats(1e-8, 0.99), st.floats(1e-3, 1e3), st.floats(0.01, 0.99), st.floats(0.9, 0.9999))
def test_adamw_is_the_derived_one(intrinsic_lr, lr, beta1, beta2):
    derived, rule = derivations.adamw, theory.AdamW(dim=500, betas=(beta1, beta2))
    values = {"lr": lr, "wd": intrinsic_lr / lr, "beta1": beta1, "beta2": beta2}
    square = derived_value(derived, derived[-2].rhs, dim=500, **values)
    assert theory.equilibrium_norm(lr, intrinsic_lr / lr, optimizer=rule) ** 2 == pytest.approx(square, rel=1e-10)
    turn = 2 * np.sin(theory.equilibrium_rotation(lr, intrinsic_lr / lr, optimizer=rule) / 2) ** 2
    assert turn == pytest.approx(derived_value(derived, derived[-1].rhs, **values), rel=1e-10)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.floats(1e-3, 0.1), st.floats(1e-4, 1), st.floats(0.1, 10), st.floats(0.01, 0.99), st.floats(0.9, 0.9999))
def test_adam_is_the_derived_one(lr, wd, g, beta1, beta2):
    derived, rule = derivations.adam, theory.Adam(dim=500, betas=(beta1, beta2))
    shrink = float(rule.shrink(np.array(lr), np.array(wd), np.array(g)))
    own = (1 - beta1) / (1 + beta1)
    assume(2 - own * shrink > 1e-6)
    values = {"lr": lr, "wd": wd, "beta1": beta1, "beta2": beta2, "shrink": shrink, "dim": 500}
    # both sides of the equation for E, with g̃ as a number
    definitions = {s: m for s, m in derived.definitions.items() if s.name in ("drift", "summed", "own")}
    numbers = {derived.symbols[key]: v for key, v in {**values, "grad_norm": g}.items()}
    sides = [float(side.subs(definitions).subs(numbers)) for side in (derived[-1].lhs, derived[-1].rhs)]
    assert sides[0] == pytest.approx(sides[1], rel=1e-7)
    square = derived_value(derived, derived[-2].rhs, **values)
    assert theory.equilibrium_norm(lr, wd, g, optimizer=rule) ** 2 == pytest.approx(square, rel=1e-9)
    limit = derived_value(derived, derived[0].rhs, **values)
    turn = 2 * np.sin(theory.equilibrium_rotation(lr, wd, grad_norm=g, optimizer=rule) / 2) ** 2
    # the ratio of the instant variance to the summed one, of first order in 1-β₂, is that of `adamw`
    assert turn == pytest.approx(limit, rel=2 * (1 - beta2) + 1e-9)


def test_lion_is_the_derived_one():
    derived = derivations.lion
    for betas in ((0.9, 0.99), (0.5, 0.8)):
        rule, lr, wd = theory.Lion(dim=500, betas=betas), 0.3, 0.5
        values = {"beta1": betas[0], "beta2": betas[1]}
        c = derived_value(derived, derived.symbols["correlation"], **values)
        assert rule.blend.correlation == pytest.approx(c, rel=1e-12)
        s = 1 - lr * wd
        q = 1 + 4 / np.pi * sum(np.arcsin(c * betas[1] ** (n - 1)) * s**n for n in range(1, 500))
        numbers = {"lr": lr, "wd": wd, "repetition": q, "decay_factor": s, "dim": 500}
        norm, cosine = (
            float(derived[i].rhs.subs({derived.symbols[key]: v for key, v in numbers.items()})) for i in (-2, -1)
        )
        assert theory.equilibrium_norm(lr, wd, optimizer=rule) ** 2 == pytest.approx(norm, rel=1e-10)
        assert np.cos(theory.equilibrium_rotation(lr, wd, optimizer=rule)) == pytest.approx(cosine, rel=1e-10)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-8, 0.99), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_without_momentum_the_rules_become_plain_sgd(intrinsic_lr, lr, g):
    wd = intrinsic_lr / lr
    plain = theory.equilibrium_norm(lr, wd, g)
    small = [theory.SGD(momentum=1e-13), theory.SGD(momentum=1e-13, nesterov=True), theory.SGD(decoupled=True)]
    for rule in small:
        assert theory.equilibrium_norm(lr, wd, g, optimizer=rule) == pytest.approx(plain, rel=1e-9)
        assert theory.equilibrium_rotation(lr, wd, optimizer=rule) == pytest.approx(
            theory.equilibrium_rotation(lr, wd), rel=1e-9
        )
    # sign of the gradient: every coordinate steps by η, as SGD with g̃/ρ = √d
    lion = theory.Lion(dim=100, betas=(0.0, 0.5))
    assert theory.equilibrium_norm(lr, wd, g, optimizer=lion) ** 2 == pytest.approx(
        lr * 100 / (wd * (2 - intrinsic_lr)), rel=1e-9
    )
    assert theory.equilibrium_rotation(lr, wd, optimizer=lion) == pytest.approx(
        theory.equilibrium_rotation(lr, wd), rel=1e-9
    )


def test_lion_sums_its_series():
    for beta1, beta2 in itertools.product((0.1, 0.9, 0.99), (0.5, 0.99)):
        rule = theory.Lion(dim=10, betas=(beta1, beta2))
        for intrinsic_lr in (1e-3, 0.3):
            current, previous, c = 1 - beta1, beta1 * (1 - beta2), []
            variance = current**2 + previous**2 / (1 - beta2**2)
            for lag in range(1, 8000):
                c.append(
                    (current * previous * beta2 ** (lag - 1) + previous**2 * beta2**lag / (1 - beta2**2)) / variance
                )
            brute = 1 + 4 / np.pi * sum(np.arcsin(x) * (1 - intrinsic_lr) ** (n + 1) for n, x in enumerate(c))
            closed_form = (
                theory.equilibrium_norm(1.0, intrinsic_lr, optimizer=rule) ** 2 * intrinsic_lr * (2 - intrinsic_lr) / 10
            )
            assert closed_form == pytest.approx(brute, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.floats(1e-6, 1e2),
    st.floats(1e-8, 1e2),
    st.floats(1e-6, 1e6),
    st.sampled_from([0.0, 0.9]),
    st.floats(0.9, 1 - 1e-9),
)
def test_adam_solves_its_equation(lr, wd, g, beta1, beta2):
    rule = theory.Adam(dim=1000, betas=(beta1, beta2))
    c, e = (1 - beta1) / (1 + beta1), 1 - beta2
    w, cross = 2 * e / (1 + beta2), (1 - beta1) / (1 - beta1 * beta2)
    drift = 1 + 3 * w / 8 - e * cross
    growth = 1 + 3 * w / 4 + w * cross * (1 + beta1 * beta2) / (1 + beta1) / 4 - 2 * e * cross
    shrink = rule.shrink(np.array(lr), np.array(wd), np.array(g))
    assert 0 < shrink <= 2 / c * (1 + 1e-12)
    left = 3 * np.log(shrink) + 2 * np.log(2 + (1 - c) * shrink)
    right = 2 * np.log(lr**2 * wd * 1000 / g) + 2 * np.log(drift) + np.log(growth)
    # 2-cE loses its digits for very strong decay
    if 2 - c * shrink > 1e-6:
        assert left - np.log(2 - c * shrink) == pytest.approx(right, rel=1e-8, abs=1e-8)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.floats(0, 0.999), st.floats(0.5, 1 - 1e-9), st.floats(0, 1))
def test_variances_of_directions_are_positive(beta1, beta2, s):
    variance = adam_direction_variance((beta1, beta2), np.array(s))
    assert variance.instant > 0
    assert variance.autocorrelation(s) > 0
    lion = theory.Lion(dim=1, betas=(beta1, beta2))
    assert -1 < lion.blend.correlation < 1


@pytest.mark.parametrize("rule", ALL, **ids)
def test_limits_and_shapes(rule):
    assert theory.equilibrium_norm(0.1, 0.0, optimizer=rule) == np.inf
    assert theory.equilibrium_rotation(0.1, 0.0, optimizer=rule) == 0
    grid = theory.equilibrium_norm([[0.1], [0.2]], [0.1, 0.2, 0.3], 2.0, optimizer=rule)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == pytest.approx(theory.equilibrium_norm(0.2, 0.3, 2.0, optimizer=rule), rel=1e-12)
    if np.isfinite(rule.intrinsic_lr_limit):
        with pytest.raises(ValueError, match=r"lr \* wd must be <"):
            theory.equilibrium_norm(rule.intrinsic_lr_limit, 1.0, optimizer=rule)
