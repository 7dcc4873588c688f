import functools

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory
from theory import derivations
from theory.derivations._derivation import Derivation, Eq

NAMES = derivations.__all__
positive = st.floats(1e-3, 1e3)


def log_uniform(low, high):
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)))


@functools.cache
def formula(name, index=-1):
    derived = getattr(derivations, name)
    return tuple(derived.symbols), sympy.lambdify(tuple(derived.symbols.values()), derived[index].rhs, "mpmath")


def exact(name, index=-1, **values):
    """Value of a derived formula with 60 digits, so that only the NumPy function rounds."""
    keys, function = formula(name, index)
    with mpmath.workdps(60):
        return function(*(mpmath.mpf(values.get(key, 0)) for key in keys))


def mutations(relation):
    """Yield wrong versions of a relation: an extra factor or term, another exponent, sides exchanged."""
    if isinstance(relation.rhs, sympy.Piecewise):
        cases = relation.rhs.args
        for i, (value, case) in enumerate(cases):
            yield Eq(relation.lhs, sympy.Piecewise(*cases[:i], (value * sympy.Rational(11, 10), case), *cases[i + 1 :]))
        (first, when_first), (second, when_second), *rest = cases
        yield Eq(relation.lhs, sympy.Piecewise((second, when_first), (first, when_second), *rest))
        yield Eq(relation.lhs, sympy.Piecewise((first, sympy.Not(when_first)), (second, when_second), *rest))
    elif isinstance(relation, sympy.Equality):
        yield Eq(relation.lhs, relation.rhs + sympy.Rational(1, 1000))
        if relation.rhs != 0:
            yield Eq(relation.lhs, relation.rhs * sympy.Rational(11, 10))
            yield Eq(relation.lhs, -relation.rhs)
        if relation.rhs not in (0, 1):
            yield Eq(relation.lhs, relation.rhs**2)
    else:
        yield relation.func(relation.rhs, relation.lhs, evaluate=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_proved_and_no_mutation_of_it(name):
    derived = getattr(derivations, name)
    assert derived.unproved() == []
    assert len(derived.reasons) == len(derived) >= 3
    assert all(len(reason) > 10 for reason in derived.reasons)
    for i, right in enumerate(list(derived)):
        for wrong in mutations(right):
            derived[i] = wrong
            try:
                assert not derived.proves(i), (i, wrong)
            finally:
                derived[i] = right


@pytest.mark.parametrize("name", ["norm_bounds", "norm_envelope"])
def test_collected_cases_are_unproved_if_one_case_is_wrong(name):
    derived = getattr(derivations, name)
    pieces = [i for i, relation in enumerate(derived) if isinstance(relation.rhs, sympy.Piecewise)]
    for piece in pieces:
        same_end = [i for i in range(piece) if derived[i].lhs == derived[piece].lhs]
        cases = [i for i in same_end if derived._case[i] is not None]
        assert len(cases) == 3
        for i in cases:
            right = derived[i]
            derived[i] = Eq(right.lhs, right.rhs * sympy.Rational(11, 10))
            try:
                assert not derived.proves(piece)
            finally:
                derived[i] = right


def test_a_formula_with_a_relative_error_of_1e_12_is_not_proved():
    # the error is far too small to be detected by evaluation at one point
    derived = derivations.equilibrium_norm
    right = derived[-1]
    derived[-1] = Eq(right.lhs, right.rhs * (1 + sympy.Rational(1, 10**12)))
    try:
        assert derived.unproved() == [len(derived) - 1]
    finally:
        derived[-1] = right


def test_false_statements_are_not_proved():
    x, y = sympy.symbols("x y", positive=True)
    false = Derivation("Nothing true.", "x, y > 0.", [x, y], {y: x**2})
    false.step(sympy.Ge(x, 1 / x, evaluate=False), "Wrong for x < 1.")
    false.step(sympy.Gt((x - 1) ** 2, 0, evaluate=False), "Wrong at x = 1.")
    false.step(Eq(y, x**2 + 1), "Wrong for the definition of y.")
    false.step(Eq(sympy.Symbol("z"), x), "The symbol z is not defined.")
    false.step(Eq(y, sympy.Piecewise((x**2, x < 1), (x, True))), "No step proves the cases.")
    false.step(Eq(y, x**2), "The first case is right.", case=x < 1)
    false.step(Eq(y, x), "The second case is wrong.", case=sympy.true)
    false.step(Eq(y, sympy.Piecewise((x**2, x < 1), (x, True))), "Hence the collected cases are wrong.")
    false.append(sympy.true)
    false.reasons.append("True is no relation.")
    assert false.unproved() == [0, 1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_can_render_it(name):
    text = getattr(derivations, name)._repr_markdown_()
    assert text.startswith("**")
    assert text.count("$$") == 2 * len(getattr(derivations, name))
    assert getattr(derivations, name)._repr_latex_().startswith("$$")


def test_an_unknown_name_raises():
    with pytest.raises(AttributeError, match="no_such_result"):
        _ = derivations.no_such_result


# NumPy rounds the product ηλ to 1.1e-16. The formulas depend on 1-ηλ and 2-ηλ, where this error is at most 3e-16/|1-ηλ|
# and 3e-16/(2-ηλ). A dozen further operations add 1e-16 each.
def rounding(intrinsic_lr, *zeros):
    return 3e-15 * (1 + sum(1 / abs(zero - intrinsic_lr) for zero in zeros))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(positive, log_uniform(1e-8, 1.999), positive)
def test_equilibrium_functions_equal_the_derived_formulas(lr, intrinsic_lr, g):
    values = {"lr": lr, "wd": intrinsic_lr / lr, "grad_norm": g}
    for name in ("equilibrium_norm", "equilibrium_effective_lr"):
        assert getattr(theory, name)(**values) == pytest.approx(
            float(exact(name, **values)), rel=rounding(intrinsic_lr, 2)
        )


@settings(deadline=None, derandomize=True, max_examples=150)
@given(positive, log_uniform(1e-8, 0.999), positive, positive, log_uniform(1e-8, 0.999))
def test_angle_functions_equal_the_derived_formulas(lr, intrinsic_lr, g, norm, delta):
    decay = {"lr": lr, "wd": intrinsic_lr / lr}
    angle = float(exact("equilibrium_rotation", **decay))
    assert theory.equilibrium_rotation(**decay) == pytest.approx(angle, rel=rounding(intrinsic_lr, 1))
    step = {**decay, "grad_norm": g, "norm": norm}
    assert theory.rotation(**step) == pytest.approx(float(exact("rotation", **step)), rel=rounding(intrinsic_lr, 1))
    threshold = {**decay, "grad_norm": g, "delta": delta}
    expected = float(exact("angular_jump_norm", **threshold))
    assert theory.angular_jump_norm(**threshold) == pytest.approx(
        expected, rel=rounding(intrinsic_lr, 1) + rounding(delta, 1)
    )


near_one = log_uniform(1e-7, 0.1).flatmap(lambda x: st.sampled_from([1 - x, 1 + x]))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(positive, st.one_of(log_uniform(1e-8, 1.999), near_one))
def test_relaxation_time_equals_the_derived_formula(lr, intrinsic_lr):
    multiplier = 1 - 4 * intrinsic_lr + 2 * intrinsic_lr * intrinsic_lr
    assume(abs(multiplier) > 1e-6)
    assume(abs(intrinsic_lr - 1) > 1e-7)
    # the rounding error of ηλ grows near the multiplier 0, where the time vanishes, and near ηλ = 1 and 2
    conditioning = 1 / abs(multiplier) + 1 / abs(1 - intrinsic_lr) + 1 / (2 - intrinsic_lr)
    expected = float(exact("relaxation_time", lr=lr, wd=intrinsic_lr / lr))
    assert theory.relaxation_time(lr, intrinsic_lr / lr) == pytest.approx(expected, rel=1e-15 * (10 + conditioning))


def draw_bounds(case):
    """Strategy for ηλ and ℓ/L over the whole range of one case of the bounds."""
    half = 1 - 0.5**0.5  # a = 1/2 at ηλ = half and 2-half
    inner = st.floats(0.01, 0.99).map(lambda x: half + (2 - 2 * half) * x)
    if case == "monotone":
        small = log_uniform(1e-8, half * 0.999)
        return st.tuples(st.one_of(small, st.floats(2 - half + 1e-3, 1.999)), log_uniform(1e-4, 1))

    def with_ratio(intrinsic_lr):
        # ℓ/L at which (L/ℓ)² = 2-4a²
        border = (2 - 4 * (1 - intrinsic_lr) ** 4) ** -0.5
        ends = (1e-4, border * 0.999) if case == "overshooting" else (border * 1.001, 1)
        return st.tuples(st.just(intrinsic_lr), log_uniform(*ends))

    return inner.filter(lambda intrinsic_lr: abs(intrinsic_lr - 1) > 1e-2).flatmap(with_ratio)


@pytest.mark.parametrize("case", ["monotone", "exchanging", "overshooting"])
def test_norm_bounds_equal_the_derived_formula_in_every_case(case):
    branch = {"monotone": 0, "exchanging": 1, "overshooting": 2}[case]
    derived = derivations.norm_bounds
    symbols = tuple(derived.symbols[name] for name in ("a", "b_min", "b_max"))
    # compare the branch with the whole piecewise formula, which must select this case
    branches = sympy.lambdify(symbols, [relation.rhs.args[branch][0] for relation in derived[-2:]], "mpmath")
    whole = sympy.lambdify(symbols, [relation.rhs for relation in derived[-2:]], "mpmath")

    @settings(deadline=None, derandomize=True, max_examples=100)
    @given(positive, draw_bounds(case), positive)
    def compare(lr, intrinsic_lr_and_ratio, high):
        intrinsic_lr, ratio = intrinsic_lr_and_ratio
        low, wd = high * ratio, intrinsic_lr / lr
        with mpmath.workdps(60):
            product = mpmath.mpf(lr) * mpmath.mpf(wd)
            inputs = (1 - product) ** 2, (mpmath.mpf(lr) * low) ** 2, (mpmath.mpf(lr) * high) ** 2
            assert branches(*inputs) == whole(*inputs)
            expected = [float(mpmath.sqrt(end)) for end in whole(*inputs)]
        # the larger end contains 1/lower, and thus the rounding error of the smaller end too
        assert theory.norm_bounds(lr, wd, low, high) == pytest.approx(expected, rel=4 * rounding(intrinsic_lr, 1, 2))

    compare()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(log_uniform(1e-8, 1.999), log_uniform(1e-3, 1), log_uniform(1e-2, 1e2))
def test_norm_envelope_equals_the_derived_step(intrinsic_lr, ratio, norm):
    assume(abs(intrinsic_lr - 1) > 1e-3)
    lr, high, steps = 0.7, 3.0, 8
    low, wd = high * ratio, intrinsic_lr / lr
    derived = derivations.norm_envelope
    upper = next(i for i, r in enumerate(derived) if r.lhs == derived.symbols["next_sq_upper"])
    envelope = theory.norm_envelope(steps, norm, lr, wd, low, high)
    with mpmath.workdps(60):
        sq_lower = sq_upper = mpmath.mpf(norm) ** 2
        a = (1 - mpmath.mpf(lr) * mpmath.mpf(wd)) ** 2
    for t in range(steps + 1):
        # each step adds its rounding error; where the map decreases, that of 1/r grows with a slope up to 1/a
        allowed = 1e-14 * (t + 1) * (1 + 1 / abs(1 - intrinsic_lr))
        with mpmath.workdps(60):
            ends = [float(mpmath.sqrt(sq_lower)), float(mpmath.sqrt(sq_upper))]
        assert [envelope.lower[t], envelope.upper[t]] == pytest.approx(ends, rel=allowed)
        values = {"lr": lr, "a": a, "grad_norm_min": low, "grad_norm_max": high}
        values |= {"sq_lower": sq_lower, "sq_upper": sq_upper}
        sq_lower, sq_upper = exact("norm_envelope", -1, **values), exact("norm_envelope", upper, **values)


def value_of(name, symbol, **values):
    """Value of the last relation for a symbol with 40 digits, with all definitions inserted."""
    derived = getattr(derivations, name)
    relation = [r for r in derived if r.lhs in (symbol, derived.symbols.get(symbol))][-1]
    expression = relation.rhs
    numbers = {derived.symbols[key]: sympy.Float(value, 40) for key, value in values.items() if key in derived.symbols}
    for symbol, definition in derived.definitions.items():
        if symbol not in numbers:
            expression = expression.subs(symbol, definition)
    return float(expression.doit().subs(numbers).evalf(40))


def side(name, index, which, **values):
    """Value of one side of a line of a derivation."""
    derived = getattr(derivations, name)
    return float(getattr(derived[index], which).subs({derived.symbols[key]: value for key, value in values.items()}))


LR, WD, G = 0.3, 0.07, 1.7  # ηλ = 0.021
A, B, INTRINSIC_LR = (1 - LR * WD) ** 2, (LR * G) ** 2, LR * WD
SETTING = {"lr": LR, "wd": WD}
TIES = {
    "equilibrium_spread: mean": (
        lambda: theory.equilibrium_spread(LR, WD, 0.8).mean_ratio,
        lambda: value_of("equilibrium_spread", "mean_ratio", variation=0.8, **SETTING),
    ),
    "equilibrium_spread: deviation": (
        lambda: theory.equilibrium_spread(LR, WD, 0.8).deviation,
        lambda: value_of("equilibrium_spread", "deviation", variation=0.8, **SETTING),
    ),
    "equilibrium_spread: correlation": (
        lambda: theory.equilibrium_spread(LR, WD, 0.8).correlation,
        lambda: value_of("equilibrium_spread", "correlation", a=A),
    ),
    "norm_flow": (
        lambda: theory.norm_flow(17.0, 2.5, LR, WD, G) ** 4,
        lambda: side("norm_flow", -1, "rhs", time=17.0, start=2.5, grad_norm=G, **SETTING),
    ),
    "decay_time": (
        lambda: theory.decay_time(5.0, 2.0, LR, WD, G),
        lambda: value_of("decay_time", "time", a=A, b=B, start=5.0**4, end=2.0**4),
    ),
    "balance": (
        lambda: theory.balance(1.0, 1.0, np.full(9, 0.1), LR, WD).decay,
        lambda: side("balance", -1, "lhs", steps=9, **SETTING),
    ),
    "balance_law": (
        lambda: theory.BalanceLaw(0.6, 0.0, 0.3, 0.0, 0.01).period(LR, WD),
        lambda: value_of("balance_law", "period", norm_rise=0.6, outside_growth=0.3, **SETTING),
    ),
    "free_decay: heavy ball": (
        lambda: theory.free_decay(0.1, 0.02, optimizer=theory.SGD(momentum=0.5)),
        lambda: value_of("free_decay", "slow", lr=0.1, wd=0.02, linear=0.5 + 0.002),
    ),
    "free_decay: Nesterov": (
        lambda: theory.free_decay(0.1, 0.02, optimizer=theory.SGD(momentum=0.5, nesterov=True)),
        lambda: value_of("free_decay", "slow", lr=0.1, wd=0.02, linear=0.5 + 0.002 * 1.5),
    ),
    "least_decay_steps": (
        lambda: theory.least_decay_steps(LR, WD, 3.0),
        lambda: float(np.ceil(value_of("least_decay_steps", "least", ratio=3.0, **SETTING))),
    ),
    "least_time_between_angular_jumps": (
        lambda: theory.least_time_between_angular_jumps(LR, WD, 0.2),
        lambda: value_of("least_time_between_angular_jumps", "least", delta=0.2, **SETTING),
    ),
    "decay_phase_product": (
        lambda: theory.decay_phase_product(31, 1e-3, LR, WD, 25.0),
        lambda: value_of("decay_phase_product", "product", start=1e-3, tail=25.0, number=31, **SETTING),
    ),
    "equivalent_run: SGD norm": (
        lambda: theory.equivalent_run(LR, WD, 2.0, lr_to=0.9).norm,
        lambda: value_of("equivalent_run", "sgd_norm", norm=2.0, lr_to=0.9, **SETTING),
    ),
    "equivalent_run: Adam norm": (
        lambda: theory.equivalent_run(LR, WD, 2.0, lr_to=0.9, optimizer=theory.Adam(dim=2)).norm,
        lambda: value_of("equivalent_run", "new_norm", norm=2.0, lr_to=0.9, **SETTING),
    ),
    "equivalent_run: Adam decay": (
        lambda: theory.equivalent_run(LR, WD, 2.0, lr_to=0.9, optimizer=theory.Adam(dim=2)).wd,
        lambda: value_of("equivalent_run", "new_wd", lr_to=0.9, **SETTING),
    ),
    "run_without_decay: lr": (
        lambda: float(theory.run_without_decay(LR, WD, optimizer=theory.SGD(momentum=0.3)).schedule(7)),
        lambda: value_of("run_without_decay", "scheduled_lr", decay_factor=decay_factor(0.3), number=7, **SETTING),
    ),
    "run_without_decay: velocity": (
        lambda: theory.run_without_decay(LR, WD, optimizer=theory.SGD(momentum=0.3)).velocity,
        lambda: value_of(
            "run_without_decay", "velocity_per_weight", decay_factor=decay_factor(0.3), momentum=0.3, **SETTING
        ),
    ),
    "tracking_lag": (
        lambda: theory.tracking_lag(theory.Exponential(LR, np.exp(-1e-4)), WD, 0),
        lambda: value_of("tracking_lag", "lag", slope=-1e-4, **SETTING),
    ),
    "corrected_decay": (
        lambda: theory.corrected_decay(theory.Constant(LR), WD, 0, lr_max=0.8),
        lambda: value_of("corrected_decay", "decay", lr_max=0.8, **SETTING),
    ),
    "total_grad_norm": (
        lambda: theory.total_grad_norm([2.0**0.5, 3.0**0.5], [0.4, 5.0]),
        lambda: value_of("total_grad_norm", "total", r_1=2.0, r_2=3.0, g_1=0.4, g_2=5.0),
    ),
    "invariance_norm": (
        lambda: theory.invariance_norm(1e-5, 0.4, 0.03),
        lambda: value_of("invariance_norm", "norm", eps=1e-5, variance=0.4, tolerance=0.03),
    ),
    "decay_invariance_norm": (
        lambda: theory.decay_invariance_norm(1e-5, 0.4, WD, 0.2, 0.03) ** 2,
        lambda: side(
            "decay_invariance_norm", -1, "rhs", eps=1e-5, variance=0.4, wd=WD, output_slope=0.2, tolerance=0.03
        ),
    ),
    "inverse_design: relaxation": (
        lambda: theory.wd_for_relaxation(LR, 40.0) * LR,
        lambda: side("inverse_design", -1, "rhs", relaxation_time=40.0),
    ),
    "inverse_design: lr for a norm": (
        lambda: theory.lr_for_norm(WD, 2.0, grad_norm=G),
        lambda: side("inverse_design", 1, "rhs", wd=WD, grad_norm=G, norm=2.0),
    ),
}  # fmt: skip


def decay_factor(momentum):
    return max(np.roots([1, -(1 + momentum - INTRINSIC_LR), momentum]))


@pytest.mark.parametrize("name", TIES)
def test_the_function_equals_the_derived_formula(name):
    function, formula_value = TIES[name]
    assert function() == pytest.approx(formula_value(), rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (theory.SGD(momentum=0.4), "heavy ball"),
        (theory.SGD(momentum=0.4, nesterov=True), "Nesterov"),
        (theory.SGD(momentum=0.4, decoupled=True), "decoupled heavy ball"),
        (theory.SGD(momentum=0.4, nesterov=True, decoupled=True), "decoupled Nesterov"),
    ],
)
def test_the_edge_with_decay_equals_the_derived_one(rule, name):
    derived = derivations.critical_norm_with_decay
    index = next(i for i, reason in enumerate(derived.reasons) if reason.startswith(f"{name}, constant norm"))
    edge = derived[index].rhs
    # two lines later is the edge during decay: its formula, or the statement that the polynomial vanishes there
    q = (1 - INTRINSIC_LR) if rule.decoupled else max(np.roots(_along(rule)).real)
    numbers = {derived.symbols["lr"]: LR, derived.symbols["wd"]: WD, derived.symbols["momentum"]: 0.4}
    assert rule.edge_with_decay(np.array(INTRINSIC_LR), False) == pytest.approx(float(edge.subs(numbers)), rel=1e-12)
    edge_decaying = (
        derived._ranges[index + 2][0][derived.symbols["edge_decaying"]] if rule.decoupled else derived[index + 2].rhs
    )
    value = float(edge_decaying.subs({derived.symbols["q"]: q, **numbers}))
    assert rule.edge_with_decay(np.array(INTRINSIC_LR), True) == pytest.approx(value, rel=1e-12)


def _along(rule):
    """Coefficients of the characteristic polynomial of weight and buffer without curvature."""
    s = 1 - INTRINSIC_LR
    return [1, -1.4 * s, 0.4 * s] if rule.nesterov else [1, -(1.4 - INTRINSIC_LR), 0.4]


@given(lr=log_uniform(1e-3, 10), share=st.floats(1e-3, 0.9), norm=positive, fixed=positive)
def test_functions_for_a_wanted_effective_lr_are_the_derived_formulas(lr, share, norm, fixed):
    wd = share / lr
    values = {"lr": lr, "wd": wd, "norm": norm, "fixed_norm": fixed}
    for index, optimizer in ((-1, "SGD"), (-2, "AdamW")):
        expected = exact("lr_at_fixed_norm", index, **values)
        assert theory.lr_at_fixed_norm(lr, norm, wd, fixed_norm=fixed, optimizer=optimizer) == pytest.approx(
            float(expected), rel=1e-12
        )
    # the derivation is to first order in the intrinsic learning rate
    wanted = 1e-6 / fixed
    settings = theory.settings_for_effective_lr(wanted, 1, norm=norm, grad_norm=fixed)
    derived = exact("settings_for_effective_lr", effective_lr=wanted, square=norm**2, grad_norm=fixed)
    assert settings.wd[0] == pytest.approx(float(derived), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["SGD", "SGD(momentum=0.9)", "AdamW(dim=50)", "Lion(dim=50)", "Adam(dim=50)"])
def test_the_lag_is_the_derived_formula(optimizer):
    rule, (lr, wd, grad_norm, steps) = theory.optimizers.check_optimizer(optimizer), (1e-3, 1e-3, 2.0, 10**9)
    values = [np.asarray(value) for value in (lr, wd, grad_norm)]
    lag = theory.tracking_lag(theory.Linear(2 * lr, 1e-12, steps), wd, steps // 2, grad_norm=grad_norm, optimizer=rule)
    settled = theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)
    expected = exact(
        "small_steps", p=rule.norm_power, q=rule.rate_exponent, rate=float(rule.norm_rate(*values)),
        settled=settled, slope=-1 / (steps // 2),
    )  # fmt: skip
    assert lag == pytest.approx(float(expected), rel=1e-3)
    # the law that the steps of the derivation state
    law = {"SGD": (4 * lr * wd, 2 * (lr * grad_norm) ** 2), "Lion(dim=50)": (2 * lr * wd, None)}.get(optimizer)
    if law:
        assert float(rule.norm_rate(*values)) == pytest.approx(law[0])
        assert law[1] is None or float(rule.norm_growth(values[0], values[2])) == pytest.approx(law[1])


def test_probable_bounds_are_the_derived_formulas():
    lr, wd, low, high, mean = 0.1, 1e-4, 0.5, 4.0, 1.0
    a, log_chance = (1 - lr * wd) ** 2, np.log(2 / 0.01)
    bounds = theory.probable_norm_bounds(lr, wd, mean, mean, high, grad_norm_min=low)
    values = {
        "a": a,
        "lr": lr,
        "mean": mean,
        "variance": (1 - a**2) / (1 + a**2) * mean * high**2,
        "span": (1 - a**2) * (high**2 - low**2),
        "log_chance": log_chance,
        "b_max": (lr * high) ** 2,
        "least": theory.norm_bounds(lr, wd, low, high).lower ** 4,
    }
    values["deviation"] = float(exact("probable_norm_bounds", -3, **values))
    assert bounds.lower**4 == pytest.approx(float(exact("probable_norm_bounds", -2, **values)), rel=1e-10)
    assert bounds.upper**4 == pytest.approx(float(exact("probable_norm_bounds", -1, **values)), rel=1e-10)
