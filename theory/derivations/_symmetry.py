"""Equivalent settings: different lr, wd and initial norm with the same training (docs/mathematics.md §6)."""

from __future__ import annotations

from typing import Any

import sympy

from theory.derivations._derivation import Derivation, Eq
from theory.derivations._symbols import BELOW_ONE, lr, momentum, norm, wd
from theory.optimizers import Adam, AdamW, sgd_update

factor = sympy.Symbol("factor", positive=True)
weights, gradient, velocity = sympy.symbols("weights gradient velocity", real=True)
new_lr, new_wd, new_norm = sympy.symbols("new_lr new_wd new_norm", positive=True)


def equivalent_run() -> Derivation:
    """Derive the weight decay and initial norm with which another learning rate gives the same directions."""
    to, scale, sgd_norm, sgd_wd = sympy.symbols("lr_to scale sgd_norm sgd_wd", positive=True)
    root = sympy.sqrt(to / lr)
    # SGD keeps its directions for ρ ∝ √η, the other optimizers for ρ ∝ η
    result = Derivation(
        "Settings with the same directions of the weights.",
        "All weights are scale-invariant: weights c times as large have gradients 1/c times as large; `factor` is c. "
        "The update rules are applied to one weight, its gradient and its state.",
        [lr, wd, norm, to, momentum, new_lr, new_wd, new_norm, sgd_norm, sgd_wd],
        {new_norm: norm * scale, new_wd: wd / scale**2, scale: to / lr, sgd_norm: norm * root, sgd_wd: wd / root**2},
    )
    for words, nesterov, decoupled in (
        ("heavy ball", False, False),
        ("Nesterov", True, False),
        ("decoupled heavy ball", False, True),
        ("decoupled Nesterov", True, True),
    ):
        after, (buffer,) = sgd_update(weights, gradient, velocity, lr, wd, momentum, nesterov, decoupled)
        large, small = factor * weights, gradient / factor
        scaled, (scaled_buffer,) = sgd_update(
            large, small, velocity / factor, factor**2 * lr, wd / factor**2, momentum, nesterov, decoupled
        )
        result.step(
            Eq(scaled, factor * after),
            f"SGD, {words}: with c²·η and λ/c², a step maps weights c times as large to c times the new weights.",
        )
        result.step(
            Eq(scaled_buffer, buffer / factor),
            "The buffer becomes 1/c of the buffer, so all later steps correspond too.",
        )
    for rule, decay_power, words in (
        (AdamW, 1, "AdamW: with c·η, λ/c and ε/c, a step maps weights c times as large to c times the new weights."),
        (
            Adam,
            2,
            "Adam with L2: the same holds with λ/c², because the decay term is divided by the size of the gradient.",
        ),
    ):
        result.step(_adaptive(rule, decay_power), words)
    blend, keep = sympy.symbols("blend keep", positive=True)

    def lion(place: Any, push: Any, mean: Any, learning_rate: Any, decay: Any) -> tuple[Any, Any]:
        after = place - learning_rate * (sympy.sign(blend * mean + (1 - blend) * push) + decay * place)
        return after, keep * mean + (1 - keep) * push

    plain, mean = lion(weights, gradient, velocity, lr, wd)
    scaled, scaled_mean = lion(factor * weights, gradient / factor, velocity / factor, factor * lr, wd / factor)
    result.step(
        Eq(scaled.subs(*_same_sign(blend)), factor * plain),
        "Lion: the sign does not depend on the size of the blend. With c·η and λ/c, a step maps weights c times as "
        "large to c times the new weights.",
    )
    result.step(Eq(scaled_mean, mean / factor), "The mean becomes 1/c of the mean.")
    result.step(Eq(sgd_norm, norm * root), "SGD: c² = η'/η, so the initial norm is √(η'/η) times as large.")
    result.step(Eq(lr * wd, to * sgd_wd), "For SGD ηλ is the same in both settings.")
    result.step(Eq(new_norm, norm * to / lr), "AdamW, Lion and Adam: c = η'/η.")
    result.step(Eq(new_wd, wd * lr**2 / to**2), "Adam with L2 keeps η²λ; AdamW and Lion keep ηλ.")
    return result


def _same_sign(blend: Any) -> tuple[Any, Any]:
    """Return sign((b m + (1-b) g)/c) for c > 0 and its form without c, which sympy does not find by itself."""
    small = blend * velocity / factor + (1 - blend) * gradient / factor
    return sympy.sign(small), sympy.sign(sympy.expand(small * factor))


def _adaptive(rule: Any, decay_power: int) -> Any:
    """Return the equation between a step of Adam or AdamW with scaled settings and the scaled step."""
    beta1, beta2, epsilon, mean, square = sympy.symbols("beta1 beta2 epsilon mean square", positive=True)
    push, place, count = sympy.symbols("push place count", positive=True)

    def after(by: Any) -> Any:
        optimizer = rule(dim=1)
        object.__setattr__(optimizer, "betas", (beta1, beta2))
        object.__setattr__(optimizer, "eps", epsilon / by)
        state = (mean / by, square / by**2, count)
        moved, _ = optimizer.update(by * place, push / by, state, by * lr, wd / by**decay_power)
        return sympy.nsimplify(moved)

    return Eq(after(factor), factor * after(1))


def run_without_decay() -> Derivation:
    """Derive the growing learning rate η_t = ηα^(-2t-1) that replaces weight decay, for SGD and heavy ball."""
    before, here, push, first = sympy.symbols("before here push first", real=True)
    number = sympy.Symbol("number", integer=True, nonnegative=True)
    decay_factor = sympy.Symbol("decay_factor", positive=True)
    intrinsic_lr = lr * wd
    growing_lr = lr * decay_factor ** (-2 * number - 1)
    root = (1 + momentum - intrinsic_lr + sympy.sqrt((1 + momentum - intrinsic_lr) ** 2 - 4 * momentum)) / 2
    # step with decay, written without the buffer; x_t = α^t y_t, and gradients at y are α^t times as large
    with_decay = (
        (1 + momentum - intrinsic_lr) * here * decay_factor**number
        - momentum * before * decay_factor ** (number - 1)
        - lr * push / decay_factor**number
    )
    earlier = growing_lr.subs(number, number - 1)
    without = here + momentum * growing_lr / earlier * (here - before) - growing_lr * push
    scheduled = sympy.Symbol("scheduled_lr", positive=True)
    start = sympy.Symbol("velocity_per_weight", real=True)
    result = Derivation(
        "A growing learning rate in place of weight decay.",
        "All weights are scale-invariant; heavy ball with coupled decay, 0 <= μ, ηλ <= (1-√μ)²; α = `decay_factor`; "
        "step `number`; `here` and `before` are the weights y_t and y_(t-1) of the run without decay; `push` is its "
        "gradient at y_t.",
        [lr, wd, momentum, number, decay_factor, scheduled, start],
        {scheduled: growing_lr, start: (decay_factor - 1 + intrinsic_lr) / (lr * momentum)},
    )
    result.step(Eq(growing_lr / earlier, decay_factor**-2), "The learning rates grow by the factor α^-2 per step.")
    result.step(
        Eq(
            sympy.expand(with_decay / decay_factor ** (number + 1) - without),
            sympy.expand(here * ((1 + momentum - intrinsic_lr) / decay_factor - 1 - momentum / decay_factor**2)),
        ),
        "With y_t = x_t/α^t, subtract a step without decay from a step with decay over α^(t+1). The gradients "
        "cancel, and this difference remains.",
    )
    result.step(
        Eq((root**2 - (1 + momentum - intrinsic_lr) * root + momentum), 0),
        "The difference vanishes if α² - (1+μ-ηλ)α + μ = 0. The larger root is the factor by which the norm decays "
        "without gradients.",
    )
    result.step(Eq(root.subs(momentum, 0), 1 - intrinsic_lr), "Without momentum α = 1-ηλ.", BELOW_ONE)
    first_step = first - lr / decay_factor * (momentum * start * first + push)
    result.step(
        Eq(first_step, ((1 - intrinsic_lr) * first - lr * push) / decay_factor),
        "In the first step the run with decay has an empty buffer. The run without decay then needs the buffer v₀ = "
        "(α-1+ηλ)x₀/(ημ).",
    )
    result.step(
        Eq(start, (decay_factor - 1 + intrinsic_lr) / (lr * momentum)), "This is the initial buffer per weight."
    )
    result.step(Eq(scheduled, lr * decay_factor ** (-2 * number - 1)), "The learning rate of step `number`.")
    return result


def lr_at_fixed_norm() -> Derivation:
    """Derive the learning rate with which a run at fixed norm has the directions of a run with weight decay."""
    fixed, repeated, normalized, push = sympy.symbols("fixed_norm repeated normalized push", positive=True)
    scale, decayed = fixed / norm, 1 - lr * wd
    free = decayed * weights / scale - lr * scale * gradient
    step_of_fixed_size = decayed * weights / scale - lr * push
    result = Derivation(
        "Learning rate at fixed norm that repeats a run.",
        "All weights are scale-invariant and share η and λ; 0 < ηλ < 1; `weights` y have the norm R = `fixed_norm`; "
        "the weights x of the run with decay are ρ/R times as large; `gradient` is that at y; `push` is the direction "
        "of an optimizer whose steps do not depend on the size of the gradient.",
        [lr, wd, norm, fixed, repeated, normalized],
        {repeated: lr * scale**2 / decayed, normalized: lr * scale / decayed},
    )
    result.step(
        Eq(free, decayed * weights * norm / fixed - lr * gradient * fixed / norm),
        "A step of plain SGD with decay. The gradient at x is R/ρ times the gradient at y.",
        BELOW_ONE,
    )
    result.step(
        Eq(sympy.expand(free * scale / decayed), weights - repeated * gradient),
        "Divided by (1-ηλ)ρ/R, it is a step from y without decay. The factor does not change the direction, and "
        "rescaling to R removes it.",
        BELOW_ONE,
    )
    result.step(
        Eq(sympy.expand(step_of_fixed_size * scale / decayed), weights - normalized * push),
        "The same for AdamW, Lion and Muon, if their direction is the same.",
        BELOW_ONE,
    )
    result.step(Eq(normalized, lr * fixed / (norm * (1 - lr * wd))), "AdamW, Lion and Muon.")
    result.step(Eq(repeated, lr * fixed**2 / (norm**2 * (1 - lr * wd))), "Plain SGD, exactly.")
    return result
