import functools

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from theory import derivations
from theory.derivations.derivation import Derivation, Eq

NAMES = derivations.__all__
positive = st.floats(1e-3, 1e3)


def numbers(name, **values):
    """The last formula of a derivation as a number."""
    derived = getattr(derivations, name)
    return float(derived[-1].rhs.subs({derived.symbols[key]: value for key, value in values.items()}))


@functools.cache
def compiled(name, symbols, formulas):
    return sympy.lambdify(symbols, formulas, "numpy")


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_proved_and_has_a_reason(name):
    derived = getattr(derivations, name)
    assert derived.unproved() == []
    assert len(derived.reasons) == len(derived) >= 4
    assert all(len(reason) > 10 for reason in derived.reasons)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_formula_is_not_proved(name):
    derived = getattr(derivations, name)
    right = derived[-1]
    # a case that depends on the formula must fall with it: each branch of a Piecewise is one step
    wrong_rhs = (
        sympy.Piecewise(*((value * sympy.Rational(11, 10), case) for value, case in right.rhs.args))
        if isinstance(right.rhs, sympy.Piecewise)
        else right.rhs * sympy.Rational(11, 10)
    )
    derived[-1] = Eq(right.lhs, wrong_rhs)
    try:
        assert len(derived) - 1 in derived.unproved()
    finally:
        derived[-1] = right


@pytest.mark.parametrize("name", ["norm_bounds", "norm_envelope"])
def test_every_case_is_proved_on_its_own(name):
    derived = getattr(derivations, name)
    cases = [i for i in range(len(derived)) if derived._case[i] is not None]
    assert len(cases) >= 3
    for i in cases:
        right = derived[i]
        derived[i] = Eq(right.lhs, right.rhs * sympy.Rational(11, 10))
        assert not derived.proves(i)
        derived[i] = right


def test_a_false_inequality_is_not_proved():
    x = sympy.Symbol("x", positive=True)
    false = Derivation("x >= 1/x.", "x > 0.", {"x": x})
    false.step(sympy.Ge(x, 1 / x), "It is not.")
    assert false.unproved() == [0]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_can_show_it(name):
    text = getattr(derivations, name)._repr_markdown_()
    assert text.startswith("**")
    assert text.count("$$") == 2 * len(getattr(derivations, name))
    assert getattr(derivations, name)._repr_latex_().startswith("$$")


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no_such_result"):
        _ = derivations.no_such_result


@settings(deadline=None, derandomize=True, max_examples=60)
@given(positive, st.floats(1e-6, 1.99), positive)
def test_equilibrium_formulas_are_the_numerical_ones(lr, k, g):
    wd = k / lr
    values = {"lr": lr, "wd": wd, "grad_norm": g}
    assert numbers("equilibrium_norm", **values) == pytest.approx(theory.equilibrium_norm(lr, wd, g), rel=1e-12)
    assert numbers("equilibrium_effective_lr", **values) == pytest.approx(
        theory.equilibrium_effective_lr(lr, wd, g), rel=1e-12
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(positive, st.floats(1e-4, 0.999), positive, positive, st.floats(1e-3, 0.999))
def test_formulas_of_angles_are_the_numerical_ones(lr, k, g, norm, delta):
    wd = k / lr
    # 1-ηλ loses digits near ηλ = 1, and arccos near 1
    assert numbers("equilibrium_rotation", lr=lr, wd=wd) == pytest.approx(theory.equilibrium_rotation(lr, wd), rel=1e-9)
    angle = numbers("rotation", lr=lr, wd=wd, grad_norm=g, norm=norm)
    assert angle == pytest.approx(theory.rotation(norm, lr, wd, g), rel=1e-9)
    threshold = numbers("jump_norm", lr=lr, wd=wd, grad_norm=g, delta=delta)
    assert threshold == pytest.approx(theory.jump_norm(lr, wd, g, delta), rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(positive, st.floats(1e-3, 1.99))
def test_relaxation_formula_is_the_numerical_one(lr, k):
    wd = k / lr
    multiplier = 1 - 4 * k + 2 * k * k
    if abs(multiplier) < 1e-3 or abs(abs(multiplier) - 1) < 1e-5:
        return
    # the logarithm of a multiplier near ±1 loses the digits that the difference has
    assert numbers("relaxation_time", lr=lr, wd=wd) == pytest.approx(theory.relaxation_time(lr, wd), rel=1e-8)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-4, 1.9), st.floats(0.01, 1))
def test_bounds_are_the_numerical_ones_in_every_case(k, ratio):
    if abs(k - 1) < 1e-2:
        return
    lr, low, high = 0.7, 3.0 * ratio, 3.0
    derived = derivations.norm_bounds
    a, b_min, b_max = (derived.symbols[n] for n in ("a", "b_min", "b_max"))
    formulas = compiled("norm_bounds", (a, b_min, b_max), tuple(relation.rhs for relation in derived[-2:]))
    with np.errstate(invalid="ignore"):
        lower, upper = (value**0.5 for value in formulas((1 - k) ** 2, (lr * low) ** 2, (lr * high) ** 2))
    found = theory.norm_bounds(lr, k / lr, low, high)
    assert lower == pytest.approx(found.lower, rel=1e-9)
    assert upper == pytest.approx(found.upper, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(1e-3, 1.9), st.floats(0.01, 1), st.floats(0.1, 10))
def test_the_derived_step_of_the_envelope_is_the_numerical_one(k, ratio, norm):
    if abs(k - 1) < 1e-3:
        return
    lr, high = 0.7, 3.0
    derived = derivations.norm_envelope
    symbols = derived.symbols
    upper_step = next(r for r in derived if r.lhs == symbols["next_sq_upper"]).rhs
    names = ("lr", "a", "grad_norm_min", "grad_norm_max", "sq_lower", "sq_upper")
    formulas = compiled("norm_envelope", tuple(symbols[n] for n in names), (derived[-1].rhs, upper_step))
    ends = (norm**2, norm**2)
    envelope = theory.norm_envelope(6, norm, lr, k / lr, high * ratio, high)
    for t in range(1, 7):
        ends = formulas(lr, (1 - k) ** 2, high * ratio, high, *ends)
        np.testing.assert_allclose([envelope.lower[t], envelope.upper[t]], np.sqrt(ends), rtol=1e-10)
