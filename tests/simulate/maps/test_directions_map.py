"""The map under Lion and Muon is the law of Gaussian blends, and that of random walks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from simulate import BoundedGradient, norm_map, random_walk

DIM, STEPS, LR = 300, 3000, 0.01
SCHEDULES = {
    "constant": LR,
    "cosine": theory.Cosine(LR, 0.05 * LR, STEPS),
    "steps": theory.StepDecay(LR, milestones=(STEPS // 3, 2 * STEPS // 3), factor=0.3),
}
RULES = {
    "Lion": theory.Lion(dim=DIM),
    "Lion, long blend": theory.Lion(dim=DIM, betas=(0.95, 0.98)),
    "Muon": theory.Muon(rows=12, columns=25, momentum=0.9, iterations=0),
    "Muon, no blend": theory.Muon(rows=300, columns=1, momentum=0.8, nesterov=False, iterations=0),
}
BETAS = st.sampled_from([0.0, 0.3, 0.9])


def gaussian_norms(rule, lrs, wds, gradients, norm, correlation):
    """Norms from the covariance of all steps; `correlation` maps that of two blends to that of two directions."""
    steps = len(lrs)
    current, previous, memory = rule.blend
    momentum, blends = np.zeros(steps), np.zeros((steps, steps))
    square, norms = rule.direction_law()[1][0], [norm]
    shrink, covariance, coefficients = 1.0, np.zeros((steps, steps)), np.zeros(steps)
    for t in range(steps):
        gradient = np.zeros(steps)
        gradient[t] = gradients[t] / norms[-1]
        blends[t] = previous * momentum + current * gradient
        blends[t] /= np.linalg.norm(blends[t])
        momentum = memory * momentum + (1 - memory) * gradient
        row = square * correlation(np.clip(blends[: t + 1] @ blends[t], -1, 1))
        covariance[t, : t + 1] = covariance[: t + 1, t] = row
        # x is a sum of the first weights and of all directions so far
        shrink, coefficients = shrink * (1 - lrs[t] * wds[t]), coefficients * (1 - lrs[t] * wds[t])
        coefficients[t] = -lrs[t]
        norms.append(math.sqrt(shrink * shrink * norm * norm + coefficients @ covariance @ coefficients))
    return np.array(norms)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    betas=st.tuples(BETAS, BETAS),
    decay=st.floats(0, 0.5),
    norm=st.floats(-2, 3).map(math.exp),
    scale=st.floats(-100, 100).map(math.exp),
)
def test_it_is_the_law_of_gaussian_blends(betas, decay, norm, scale):
    rule, steps = theory.Lion(dim=50, betas=betas), 60
    lr, wd = theory.Cosine(0.1, 0.01, steps), theory.Linear(10 * decay + 1e-9, 1e-9, steps)
    drive, at = BoundedGradient(0.5 * scale, scale), np.arange(steps)
    run = norm_map(lr, wd, drive, norm=norm, steps=steps, optimizer=rule, seed=5)
    norms = gaussian_norms(
        rule, lr(at), wd(at), drive.values_for((), steps, 5), norm, lambda c: 2 / math.pi * np.arcsin(c)
    )
    # the series of the arcsine ends after 64 terms or more
    np.testing.assert_allclose(run.norm, norms[:-1], rtol=0.01)
    np.testing.assert_allclose(run.final_norm, norms[-1], rtol=0.01)
    # the size of the gradient does not matter
    scaled = norm_map(lr, wd, BoundedGradient(0.5, 1.0), norm=norm, steps=steps, optimizer=rule, seed=5)
    np.testing.assert_allclose(run.norm, scaled.norm, rtol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(betas=st.tuples(BETAS, BETAS), decay=st.floats(0, 0.5), norm=st.floats(-2, 3).map(math.exp))
def test_of_a_linear_direction_it_is_exact(betas, decay, norm):
    class Linear(theory.Lion):
        def odd_function(self):
            return 1.0, [1.0]

    rule, steps = Linear(dim=50, betas=betas), 60
    lr, wd = theory.Cosine(0.1, 0.01, steps), theory.Linear(10 * decay + 1e-9, 1e-9, steps)
    drive, at = BoundedGradient(0.1, 10.0), np.arange(steps)
    run = norm_map(lr, wd, drive, norm=norm, steps=steps, optimizer=rule, seed=5)
    norms = gaussian_norms(rule, lr(at), wd(at), drive.values_for((), steps, 5), norm, lambda c: c)
    np.testing.assert_allclose(run.norm, norms[:-1], rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", RULES)
def test_norms_are_those_of_random_walks(name, schedule):
    rule, lr, wd = RULES[name], SCHEDULES[schedule], 0.5
    start = 1.4 * theory.equilibrium_norm(LR, wd, optimizer=rule)
    arguments = {"norm": start, "steps": STEPS, "optimizer": rule, "record_every": 10}
    run = norm_map(lr, wd, 1.0, **arguments)
    walk = random_walk(lr, wd, 1.0, dim=DIM, walkers=16, seed=0, **arguments)
    # scatter of 16 walkers, and for Muon the error of the law of many rows for 12 of them, as in the table of §7
    tolerance = 0.025 if "Muon" in name else 0.012
    np.testing.assert_allclose(run.norm, np.sqrt((walk.norm**2).mean("batch")), rtol=tolerance)
    np.testing.assert_allclose(float(run.rotation.mean()), float(walk.rotation.mean()), rtol=tolerance)


@pytest.mark.parametrize("decay", [1e-4, 0.01, 0.2])
@pytest.mark.parametrize("name", RULES)
def test_it_settles_at_the_equilibrium(name, decay):
    rule = RULES[name]
    norm = theory.equilibrium_norm(LR, decay / LR, optimizer=rule)
    run = norm_map(
        LR, decay / LR, 1.0, norm=1.1 * norm, steps=round(20 / decay) + 3000, optimizer=rule, record_every=10
    )
    assert run.final_norm == pytest.approx(norm, rel=1e-8)
    rotation = theory.equilibrium_rotation(LR, decay / LR, optimizer=rule)
    assert run.rotation.values[-1] == pytest.approx(rotation, rel=1e-7)


def test_a_start_with_another_series_is_refused():
    run = norm_map(0.1, 0.1, 1.0, norm=1.0, steps=5, optimizer=RULES["Lion"])
    with pytest.raises(ValueError, match=r"start must have \d+ terms in final_step_memory, got 1"):
        norm_map(0.1, 0.1, 1.0, steps=5, start=run.isel(term=[0]), optimizer=RULES["Lion"])


def test_without_gradients_nothing_pushes():
    run = norm_map(0.1, 0.5, 0.0, norm=2.0, steps=30, optimizer=RULES["Lion"])
    np.testing.assert_allclose(run.norm, 2.0 * 0.95 ** np.arange(30), rtol=1e-13)
    assert not run.rotation.any()


def test_runs_end_at_the_ends_of_the_range():
    run = norm_map(1e300, 0.0, 1.0, norm=1.0, steps=5, optimizer=RULES["Lion"])
    assert (run.status.item(), run.status_step.item()) == ("diverged", 0)
    run = norm_map(1.9, 0.999999, 0.0, norm=1e-140, steps=5000, optimizer=RULES["Lion"])
    assert run.status.item() == "collapsed"
