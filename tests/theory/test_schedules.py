import numpy as np
import pytest

import theory
from theory.schedules import SCHEDULES, learning_rates

EXAMPLES = [
    theory.Constant(0.3),
    theory.StepDecay(0.3, milestones=(5, 9), factor=0.5),
    theory.Linear(0.3, 0.1, steps=10),
    theory.Cosine(0.3, 0.1, steps=10),
    theory.WarmUp(4, theory.Cosine(0.3, 0.1, steps=10)),
    theory.PiecewiseLinear((0, 4, 10), (0.1, 0.3, 0.2)),
    theory.Exponential(0.3, 0.99),
]
every = pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda s: type(s).__name__)


@every
def test_vectorised_equals_one_by_one_and_is_positive(schedule):
    steps = np.arange(30)
    lrs = schedule(steps)
    assert lrs.shape == steps.shape
    np.testing.assert_array_equal(lrs, [float(schedule(t)) for t in steps])
    np.testing.assert_array_equal(lrs.reshape(5, 6), schedule(steps.reshape(5, 6)))
    assert (lrs > 0).all()
    assert lrs.max() <= 0.3
    np.testing.assert_array_equal(learning_rates(schedule, 7, 19), lrs[7:19])
    assert learning_rates(schedule, 5, 5).shape == (0,)


@every
def test_repr_and_hash_define_the_schedule(schedule):
    names = {name: getattr(theory, name) for name in SCHEDULES}
    assert eval(repr(schedule), names) == schedule
    assert hash(eval(repr(schedule), names)) == hash(schedule)


@pytest.mark.parametrize("schedule", EXAMPLES[:-1], ids=lambda s: type(s).__name__)
def test_it_is_constant_after_its_end(schedule):
    assert schedule(10**9) == schedule(100)


def test_exponential_growth_that_overflows_is_refused():
    assert theory.Exponential(0.1, 2.0)(10_000) == np.inf
    with pytest.raises(ValueError, match="lr must be"):
        learning_rates(theory.Exponential(0.1, 2.0), 0, 10_000)


def test_all_are_listed_by_name():
    assert {type(s).__name__: type(s) for s in EXAMPLES} == SCHEDULES


def test_values():
    def expected(schedule, *steps):
        # a handful of operations round by 1e-16 each
        return pytest.approx(schedule(steps).tolist(), rel=1e-14)

    assert expected(theory.Linear(0.3, 0.1, 10), 0, 5, 10, 99) == [0.3, 0.2, 0.1, 0.1]
    assert expected(theory.Linear(0.1, 0.3, 10), 0, 5, 10, 99) == [0.1, 0.2, 0.3, 0.3]
    half = 0.5**0.5
    assert expected(theory.Cosine(0.3, 0.1, 8), 0, 2, 4, 6, 8, 99) == [
        0.3,
        0.2 + 0.1 * half,
        0.2,
        0.2 - 0.1 * half,
        0.1,
        0.1,
    ]
    assert expected(theory.StepDecay(0.8, (2, 5), 0.5), 0, 1, 2, 4, 5, 99) == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert expected(theory.StepDecay(0.8, ()), 0, 99) == [0.8, 0.8]
    assert expected(theory.WarmUp(3, theory.Constant(0.3)), 0, 1, 2, 3) == [0.1, 0.2, 0.3, 0.3]
    # the schedule after the warm-up starts at its step 0
    after = theory.Linear(1.0, 0.5, 2)
    assert expected(theory.WarmUp(4, after), 0, 1, 2, 3, 4, 5, 6, 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.5]


def test_a_number_is_a_constant_learning_rate():
    assert learning_rates(0.25, 3, 6).tolist() == [0.25] * 3
    assert learning_rates(theory.Constant(0.25), 3, 6).tolist() == [0.25] * 3
    # anything callable will do
    assert learning_rates(lambda step: 1 / (1 + step), 0, 2).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: theory.Constant(0), ValueError, "lr must be a finite number > 0, got 0.0"),
        (lambda: theory.Constant("a"), TypeError, "lr must be .* got 'a'"),
        (lambda: theory.Constant([0.1, 0.2]), ValueError, r"lr must be one number, got an array of shape \(2,\)"),
        (lambda: theory.Linear(0.1, -1, 5), ValueError, "lr_end must be a finite number > 0, got -1.0"),
        (lambda: theory.Linear(np.nan, 1, 5), ValueError, "lr must be a finite number > 0, got nan"),
        (lambda: theory.Cosine(0.1, 0.1, 0), ValueError, "steps must be a whole number >= 1, got 0"),
        (lambda: theory.Cosine(0.1, 0.1, 2.5), TypeError, "steps must be a whole number >= 1, got 2.5"),
        (lambda: theory.StepDecay(0.1, (5, 5)), ValueError, r"milestones must increase, got \(5, 5\)"),
        (lambda: theory.StepDecay(0.1, (9, 5)), ValueError, r"milestones must increase, got \(9, 5\)"),
        (lambda: theory.StepDecay(0.1, (1.5,)), TypeError, "milestones must be a whole number >= 0, got 1.5"),
        (lambda: theory.StepDecay(0.1, (5,), factor=0), ValueError, "factor must be a finite number > 0, got 0.0"),
        (lambda: theory.WarmUp(0, theory.Constant(1)), ValueError, "steps must be a whole number >= 1, got 0"),
        (lambda: theory.WarmUp(5, 0.1), TypeError, r"after must be a schedule such as Constant\(0.1\), got 0.1"),
        (lambda: learning_rates(-1.0, 0, 5), ValueError, "lr must be a finite number > 0, got -1.0"),
        (lambda: learning_rates(lambda t: t - 3.0, 0, 5), ValueError, "lr must be .* > 0, got -3.0 at index 0"),
        (
            lambda: learning_rates(lambda t: 0.1, 0, 5),
            ValueError,
            r"lr must give one value for each step.*shape \(\)",
        ),
    ],
)
def test_bad_settings_are_named(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_piecewise_linear_goes_through_its_points_and_refuses_others():
    schedule = theory.PiecewiseLinear([2, 4], np.array([0.1, 0.3]))
    assert schedule([0, 2, 3, 4, 9]) == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.3])
    for steps, lrs, name in (((), (), "steps"), ((4, 2), (1.0, 1.0), "steps"), ((1, 2), (1.0,), "lrs")):
        with pytest.raises(ValueError, match=f"^{name} must"):
            theory.PiecewiseLinear(steps, lrs)
    with pytest.raises(ValueError, match=r"^lrs must be a finite number > 0"):
        theory.PiecewiseLinear((1, 2), (1.0, 0.0))
