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
]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda s: type(s).__name__)
def test_vectorised_equals_one_by_one_and_is_positive(schedule):
    steps = np.arange(30)
    rates = schedule(steps)
    assert rates.shape == steps.shape
    np.testing.assert_array_equal(rates, [float(schedule(t)) for t in steps])
    assert (rates > 0).all()
    assert rates.max() <= 0.3
    np.testing.assert_array_equal(learning_rates(schedule, 7, 19), rates[7:19])


def test_all_are_listed_by_name():
    assert {type(s).__name__: type(s) for s in EXAMPLES} == SCHEDULES


def test_ends():
    assert theory.Linear(0.3, 0.1, 10)([0, 5, 10, 99]).tolist() == pytest.approx([0.3, 0.2, 0.1, 0.1])
    assert theory.Cosine(0.3, 0.1, 10)([0, 5, 10, 99]).tolist() == pytest.approx([0.3, 0.2, 0.1, 0.1])
    assert theory.WarmUp(3, theory.Constant(0.3))([0, 1, 2, 3]).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: theory.Constant(0), "lr"),
        (lambda: theory.Linear(0.1, -1, 5), "lr_end"),
        (lambda: theory.Cosine(0.1, 0.1, 0), "steps"),
        (lambda: theory.StepDecay(0.1, (5, 5)), "milestones"),
        (lambda: theory.StepDecay(0.1, (1.5,)), "milestones"),
        (lambda: theory.StepDecay(0.1, (5,), factor=0), "factor"),
        (lambda: theory.WarmUp(0, theory.Constant(1)), "steps"),
        (lambda: theory.WarmUp(5, 0.1), "after"),
        (lambda: learning_rates(lambda step: step - 3.0, 0, 5), "lr"),
    ],
)
def test_bad_settings_are_named(make, name):
    with pytest.raises((ValueError, TypeError), match=name):
        make()
