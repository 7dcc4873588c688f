"""Whole numbers of any size reach compiled code as numbers that it can count, or not at all."""

import functools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import simulate
import theory

RUN = simulate.norm_map(0.5, 0.01, 2.0, norm=2.0, steps=300)
PERIODIC = simulate.oscillate(0.5, 0.02, steps=2000)
SCHEDULE = theory.Linear(0.5, 0.1, steps=10)
CALLS = {
    "norm_map": functools.partial(
        simulate.norm_map, 0.5, 0.01, 2.0, norm=1.0, steps=5, record_every=1, seed=0, threads=1
    ),
    "norm_ode": functools.partial(simulate.norm_ode, 0.5, 0.01, 2.0, norm=1.0, steps=5, record_every=1, seed=0),
    "random_walk": functools.partial(simulate.random_walk, 0.1, 0.1, dim=3, steps=5, record_every=1, walkers=2, seed=0),
    "oscillate": functools.partial(simulate.oscillate, 0.5, 0.01, steps=5, record_every=1, seed=0),
    "descend": functools.partial(
        simulate.descend, simulate.RayleighQuotient([1.0, 2.0]), 0.1, 0.1, steps=5, record_every=1, walkers=2, seed=0
    ),
    "phase_diagram": functools.partial(
        simulate.phase_diagram, [0.1], [0.05], model=simulate.Ratio2D(1.0, 5.0), relaxations=4, seed=0
    ),
    "find_periods": functools.partial(simulate.find_periods, PERIODIC, discard=0),
    "classify": functools.partial(simulate.classify, PERIODIC, discard=0),
    "norm_envelope": functools.partial(
        theory.norm_envelope, norm=1.0, lr=0.1, wd=0.1, grad_norm_min=1, grad_norm_max=2, steps=5
    ),
    "norm_under_schedule": functools.partial(theory.norm_under_schedule, 0.1, 0.1, norm=1.0, steps=5),
    "settings_for_effective_lr": functools.partial(theory.settings_for_effective_lr, 0.1, wd=0.1, steps=5),
    "tracked_steps": functools.partial(theory.tracked_steps, SCHEDULE, 0.01, steps=10, start=1),
}
INTEGERS = ("steps", "record_every", "seed", "threads", "walkers", "dim", "discard", "start", "relaxations")
ARGUMENTS = [(call, name) for call, partial in CALLS.items() for name in INTEGERS if name in partial.keywords]
EDGES = [2**bits + offset for bits in (31, 32, 52, 53, 62, 63, 64, 65) for offset in (-1, 0, 1)] + [
    10**39,
    -1,
    -(2**63) - 1,
]
# they take minutes or gigabytes but nothing is wrong with them
TOO_LONG = {"steps": 10**5, "walkers": 100, "dim": 1000, "relaxations": 10**3, "threads": 8}


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
@given(number=st.one_of(st.integers(), st.sampled_from(EDGES), st.integers(2**62, 2**65)))
@example(number=2**63)
@example(number=10**12)
def test_any_whole_number_works_or_is_refused_by_name(call, name, number):
    if name in TOO_LONG and TOO_LONG[name] < number < 10**12:
        return
    message = ""
    try:
        CALLS[call](**{name: number})
    except ValueError as error:
        message = str(error)
    # with too large a start no row is left to the trajectory
    assert number >= 0 if not message else message.split()[0] in (name, "trajectory")
    assert "\n" not in message


def test_enormous_requests_name_their_size():
    with pytest.raises(ValueError, match=r"relaxations must .* GiB"):
        simulate.phase_diagram([0.1], [0.01], model=simulate.Ratio2D(1.0, 5.0), relaxations=1e9)
    with pytest.raises(ValueError, match=r"steps must .* GiB"):
        simulate.norm_map(0.5, 0.01, 2.0, norm=1.0, steps=10**13)
    rows = simulate.norm_map(0.5, 0.01, 2.0, norm=1.0, steps=10**4, record_every=2**40)
    assert rows.sizes["step"] == 1
