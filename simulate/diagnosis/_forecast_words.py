"""Sentences of a forecast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import theory

if TYPE_CHECKING:
    from simulate.diagnosis.forecast import Forecast

SETTLES, STAYS_NEAR, DECREASES, INCREASES, OSCILLATES = "settles", "stays near", "falls", "rises", "oscillates"
FROZEN = "frozen"
_APART = 0.05  # |ln ρ/ρ*| above which ρ lies clearly on one side of ρ*
_GROWTH_MAX = 10.0  # growth over decay above which it is not given in percent


def forecast_words(forecast: Forecast) -> str:
    """Return a few sentences: what was observed, where the norm is heading, angular jumps, rotation, what to change."""
    f = forecast
    observed = f"{f.observed_steps} step{'s' * (f.observed_steps > 1)}"
    rows = "" if f.stride == 1 else f", one in {f.stride} recorded"
    if f.heading == FROZEN:
        parts = [
            f"Observed: {observed} of {f.optimizer} with wd = {f.wd:g}{rows}.",
            f"The norm is frozen: the learning rate {'is 0' if f.lr == 0 else 'is negligible'}; the norm stays at "
            f"{f.norm:.4g}.",
        ]
        if f.wanted_rotation is not None:
            parts.append(f"No wd gives a rotation of {f.wanted_rotation:g} at this learning rate.")
        return " ".join(part for part in parts if part)
    parts = [
        f"Observed: {observed} of {f.optimizer} at lr = {f.lr:.4g}, wd = {f.wd:.4g}{rows}.",
        _heading(f),
        _gradient_norm(f),
        _changes(f),
        _arrival(f),
        f"The run is short: {f.observed_memories:.0%} of the memory of weight decay."
        if 0 < f.observed_memories < 0.995
        else "",
        _angular_jump(f),
        _rotation(f),
        _settings(f),
        _advice(f),
    ]
    return " ".join(part for part in parts if part)


def _heading(f: Forecast) -> str:
    growth = ""
    if f.heading in (DECREASES, INCREASES) and -1 < f.growth <= _GROWTH_MAX:
        growth = f" (gradients add {max(0.0, f.growth):.0%} of what weight decay removes)"
    words = {
        SETTLES: "settles",
        STAYS_NEAR: "stays near equilibrium, but varies more or rotates less than there",
        OSCILLATES: "oscillates, with angular jumps"
        if f.has_angular_jump
        else f"oscillates: of late it rose by more than 20 % {f.norm_rises} times",
    }
    start = f"The norm {words.get(f.heading, f.heading)}{growth}: ρ = {f.norm:.4g}"
    if math.isinf(f.equilibrium_norm):
        return f"{start}; without weight decay there is no equilibrium."
    if math.isfinite(f.equilibrium_norm):
        share = f.equilibrium_norm_error / f.equilibrium_norm
        error = f" (± {share:.0%} if gradients stay as they are)" if share >= 0.005 else ""
        source = " by theory, for independent gradients" if math.isnan(share) else ""
        return f"{start}, equilibrium ρ* = {f.equilibrium_norm:.4g}{error}{source}."
    return f"{start}. Its equilibrium is {f.equilibrium_obstacle}."


def _gradient_norm(f: Forecast) -> str:
    """The g̃ that the formulas of `theory` take, for optimizers whose norm depends on it."""
    if math.isnan(f.grad_norm) or f.optimizer.partition("(")[0] not in ("SGD", "Adam"):
        return ""
    return f"Gradient norm: g̃ = {f.grad_norm:.4g}, root mean square of the last {_steps(f.grad_norm_steps)}."


def _changes(f: Forecast) -> str:
    if not f.has_changed or f.has_schedule:
        return ""
    changes = [
        f"{name} went from {first:.3g} to {last:.3g}"
        for name, first, last in (("lr", f.first_lr, f.lr), ("wd", f.first_wd, f.wd))
        if first != last
    ]
    return f"Within the memory of weight decay {' and '.join(changes)}; ρ* is that of the last value."


def _arrival(f: Forecast) -> str:
    """When the norm reaches ρ*, and where it is at the end."""
    if f.has_schedule:
        end = f"the schedule ends {f'in {_steps(f.steps_left)}' if f.steps_left else 'now'}"
    else:
        end = f"training ends {f'in {_steps(f.steps_left)}' if f.steps_left else 'now'}"
    arrives = _arrives(f)
    at_end = f"{end}, at {f.norm_at_end:.4g} if gradients stay as they are" if math.isfinite(f.norm_at_end) else ""
    if arrives:
        at = f"At {'the present lr' if f.has_schedule or f.has_changed else 'this lr'} it reaches ρ*"
        if at_end and f.steps_left is not None and f.steps_to_settle > f.steps_left:
            ends = "the schedule ends" if f.has_schedule else "training ends"
            return (
                f"{at} in about {_steps(f.steps_to_settle)}; {ends} before that, at {f.norm_at_end:.4g} if "
                "gradients stay as they are."
            )
        return f"{at} in about {_steps(f.steps_to_settle)}{f'; {at_end}' if at_end else ''}."
    side = _side(f)
    return " ".join(part for part in (side, f"{at_end[0].upper()}{at_end[1:]}." if at_end else "") if part)


def _apart(f: Forecast) -> float:
    return math.log(f.norm / f.equilibrium_norm) if 0 < f.equilibrium_norm < math.inf else math.nan


def _arrives(f: Forecast) -> bool:
    """Whether the norm moves towards ρ* from afar."""
    apart = _apart(f)
    return (
        f.heading in (DECREASES, INCREASES)
        and abs(apart) > _APART
        and (apart > 0) == (f.heading == DECREASES)
        and math.isfinite(f.steps_to_settle)
    )


def _side(f: Forecast) -> str:
    apart = _apart(f)
    if f.heading not in (DECREASES, INCREASES) or math.isnan(apart):
        return ""
    if abs(apart) <= _APART:
        return "It is close to ρ*."
    if (apart > 0) == (f.heading == DECREASES):
        return ""
    if math.isnan(f.equilibrium_norm_error):
        return f"It is already {'below' if apart < 0 else 'above'} ρ*."
    if apart > 0:
        return "It is above ρ* and still rises: the last steps were larger than those before."
    return "It is below ρ* and still falls: the last steps were smaller than those before."


def _angular_jump(f: Forecast) -> str:
    if math.isnan(f.angular_jump_norm):
        return ""
    which = f"{'the largest g̃ so far' if f.is_observed_maximum else 'a g̃ of'}{{}}"
    g = f" ({f.grad_norm_max:.4g})" if f.is_observed_maximum else f" {f.grad_norm_max:.4g}"
    gradient = which.format(g)
    if f.steps_to_angular_jump_norm == 0:
        often = ""
        if not math.isnan(f.angular_jump_share):
            count = round(f.angular_jump_share * f.recorded_rows)
            often = f" In {count} of {f.recorded_rows} rows g̃ was large enough for that."
        return f"At this norm {gradient} gives an angular jump (1 - cos θ > {f.delta:g}).{often}"
    needed = f"An angular jump (1 - cos θ > {f.delta:g}) at {gradient} needs a norm below {f.angular_jump_norm:.4g}"
    if math.isnan(f.steps_to_angular_jump_norm):
        return f"{needed}."
    if math.isinf(f.steps_to_angular_jump_norm):
        return f"{needed}, which the norm does not reach."
    return f"{needed}, which the norm reaches in about {_steps(f.steps_to_angular_jump_norm)}."


def _rotation(f: Forecast) -> str:
    if math.isnan(f.rotation):
        return ""
    at_equilibrium = ""
    if math.isfinite(f.equilibrium_rotation) and not f.has_schedule:
        independent = "" if f.optimizer == "SGD()" else " for independent gradients"
        at_equilibrium = f" ({f.equilibrium_rotation:.3g} at equilibrium{independent})"
    return f"Rotation: {f.rotation:.3g} radians per step, root mean square{at_equilibrium}."


def _settings(f: Forecast) -> str:
    if f.wanted_rotation is None:
        return ""
    lr = f"at lr = {f.highest_lr:.4g}, the highest ahead" if f.highest_lr > f.lr else "at the present lr"
    settings = [
        text
        for text, value in (
            (f"wd = {f.wd_for_rotation:.3g} {lr}", f.wd_for_rotation),
            (f"lr = {f.lr_for_rotation:.3g} at this wd", f.lr_for_rotation),
        )
        if not math.isnan(value)
    ]
    if not settings:
        return f"Settings for a rotation of {f.wanted_rotation:g} are not known for {f.optimizer}."
    return f"For a rotation of {f.wanted_rotation:g} set {', or '.join(settings)}, if training is stable there."


def _advice(f: Forecast) -> str:
    """What to change, or that nothing needs changing, where that is known."""
    if math.isfinite(f.steps_to_decide) and f.heading != OSCILLATES:
        return f"To determine ρ*, train for about {_steps(f.steps_to_decide)} more."
    if f.heading == OSCILLATES and not (f.has_angular_jump and f.optimizer == "SGD()"):
        return (
            "The norm does not settle. A smaller lr * wd makes its rises rarer. simulate.diagnose says which spikes of "
            "the loss come with them, and when to expect the next one."
        )
    if f.heading == OSCILLATES and 0 < f.lr * f.wd < 1:
        least = float(theory.least_time_between_angular_jumps(f.lr, f.wd, f.delta))
        return f"A smaller lr * wd makes angular jumps rarer: now at least {_steps(least)} lie between them on average."
    if f.heading == SETTLES:
        return "The norm is at equilibrium: nothing needs changing."
    if math.isinf(f.equilibrium_norm):
        return "Set wd > 0 if the norm should settle."
    # before one memory gradients often still change, and the equilibrium with them
    is_long = f.observed_memories >= 1
    if _arrives(f) and is_long and f.steps_left and f.steps_to_settle > f.steps_left and not f.has_schedule:
        return (
            "To settle before the end, start with a norm closer to ρ*, or multiply lr * wd by about "
            f"{f.steps_to_settle / f.steps_left:.2g}."
        )
    if f.norm_rises:
        return ""
    if _arrives(f) and is_long and not f.has_schedule and (f.steps_left is None or f.steps_to_settle <= f.steps_left):
        return "Nothing needs changing for the norm to settle."
    return ""


def _steps(count: float) -> str:
    """Number of steps with two digits, more below 1000."""
    number = max(1, round(count))
    if number >= 1000:
        number = int(float(f"{number:.2g}"))
    return f"{number} step{'s' * (number > 1)}"
