"""Settings that give the same training (docs/mathematics.md §6)."""

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
    """Derive with which decay and start another learning rate gives the same directions, for every optimizer.

    Examples
    --------
    >>> [str(relation) for relation in equivalent_run()[-2:]]
    ['Eq(new_norm, lr_to*norm/lr)', 'Eq(new_wd, lr**2*wd/lr_to**2)']
    """
    to, scale = sympy.symbols("lr_to scale", positive=True)
    result = Derivation(
        "Settings with the same directions.",
        "All weights are scale-invariant: weights c times as large have gradients 1/c times as large. `factor` is c; "
        "the settings are applied to one weight, its gradient and its state.",
        {
            "lr": lr,
            "wd": wd,
            "norm": norm,
            "lr_to": to,
            "momentum": momentum,
            "new_lr": new_lr,
            "new_wd": new_wd,
            "new_norm": new_norm,
        },
        {new_norm: norm * scale, new_wd: wd / scale**2, scale: to / lr},
    )
    # the directions of SGD need ρ ∝ √η, all others ρ ∝ η: the definitions of the published lines follow below
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
            f"SGD, {words}: η times c² and λ over c² move weights c times as large to c times the new weights …",
        )
        result.step(Eq(scaled_buffer, buffer / factor), "… and the buffer to 1/c of it: the same from then on.")
    for rule, decay_power, words in (
        (AdamW, 1, "AdamW: η times c, λ over c and ε over c move weights c times as large likewise."),
        (Adam, 2, "Adam with L2: the same with λ over c², because the decay is divided by the gradient's size."),
    ):
        result.step(_adaptive(rule, decay_power), words)
    blend, keep = sympy.symbols("blend keep", positive=True)

    def lion(place: Any, push: Any, mean: Any, rate: Any, decay: Any) -> tuple[Any, Any]:
        after = place - rate * (sympy.sign(blend * mean + (1 - blend) * push) + decay * place)
        return after, keep * mean + (1 - keep) * push

    plain, mean = lion(weights, gradient, velocity, lr, wd)
    scaled, scaled_mean = lion(factor * weights, gradient / factor, velocity / factor, factor * lr, wd / factor)
    result.step(
        Eq(scaled.subs(*_same_sign(blend)), factor * plain),
        "Lion: the sign of the blend forgets its size; weights and η times c, λ over c …",
    )
    result.step(Eq(scaled_mean, mean / factor), "… and the mean to 1/c of it.")
    root = sympy.sqrt(to / lr)
    first, second = sympy.symbols("sgd_norm sgd_wd", positive=True)
    result.definitions.update({first: norm * root, second: wd / root**2})
    result.symbols.update({"sgd_norm": first, "sgd_wd": second})
    result.step(Eq(first, norm * sympy.sqrt(to / lr)), "SGD: c² = η'/η, so the start is √(η'/η) times as large …")
    result.step(Eq(lr * wd, to * second), "… and ηλ is the same.")
    result.step(Eq(new_norm, norm * to / lr), "AdamW, Lion and Adam: c = η'/η.")
    result.step(Eq(new_wd, wd * lr**2 / to**2), "Adam with L2 keeps η²λ; AdamW and Lion keep ηλ.")
    return result


def _same_sign(blend: Any) -> tuple[Any, Any]:
    """Rewrite sign((b m + (1-b) g)/c), c > 0, which sympy does not factor by itself."""
    small = blend * velocity / factor + (1 - blend) * gradient / factor
    return sympy.sign(small), sympy.sign(sympy.expand(small * factor))


def _adaptive(rule: Any, decay_power: int) -> Any:
    """One step of Adam or AdamW, from its own update rule, and the same of the scaled settings."""
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
    """Derive the growing learning rate η_t = ηα^(-2t-1) that replaces decay, for SGD and the heavy ball.

    Examples
    --------
    >>> run_without_decay().unproved()
    []
    """
    before, here, push, first = sympy.symbols("before here push first", real=True)
    number = sympy.Symbol("number", integer=True, nonnegative=True)
    kept = sympy.Symbol("kept", positive=True)
    k = lr * wd
    rate = lr * kept ** (-2 * number - 1)
    root = (1 + momentum - k + sympy.sqrt((1 + momentum - k) ** 2 - 4 * momentum)) / 2
    # with decay: differences of the weights, without the buffer; y_t = x_t/α^t, gradients at y are α^t times as large
    with_decay = (
        (1 + momentum - k) * here * kept**number - momentum * before * kept ** (number - 1) - lr * push / kept**number
    )
    earlier = rate.subs(number, number - 1)
    without = here + momentum * rate / earlier * (here - before) - rate * push
    published = sympy.Symbol("rate", positive=True)
    start = sympy.Symbol("velocity_per_weight", real=True)
    result = Derivation(
        "A growing learning rate in place of weight decay.",
        "All weights are scale-invariant; heavy ball with coupled decay, 0 <= μ, ηλ <= (1-√μ)²; α = `kept`; step "
        "`number`; "
        "`here`, `before` are weights y_t, y_(t-1) of the run without decay, `push` its gradient at y_t.",
        {
            "lr": lr,
            "wd": wd,
            "momentum": momentum,
            "number": number,
            "kept": kept,
            "rate": published,
            "velocity_per_weight": start,
        },
        {published: rate, start: (kept - 1 + k) / (lr * momentum)},
    )
    result.step(Eq(rate / earlier, kept**-2), "The rates grow by α^-2 a step.")
    result.step(
        Eq(
            sympy.expand(with_decay / kept ** (number + 1) - without),
            sympy.expand(here * ((1 + momentum - k) / kept - 1 - momentum / kept**2)),
        ),
        "y_t = x_t/α^t: one step with decay, over α^(t+1), against one without. Gradients agree; what is left is this.",
    )
    result.step(
        Eq((root**2 - (1 + momentum - k) * root + momentum), 0),
        "It vanishes if α² - (1+μ-ηλ)α + μ = 0, whose larger root is the factor of a free fall of the norm.",
    )
    result.step(Eq(root.subs(momentum, 0), 1 - k), "Without momentum α = 1-ηλ.", BELOW_ONE)
    fresh = first - lr / kept * (momentum * start * first + push)
    result.step(
        Eq(fresh, ((1 - k) * first - lr * push) / kept),
        "The first step, with an empty buffer in the run with decay, asks for the buffer v₀ = (α-1+ηλ)x₀/(ημ) …",
    )
    result.step(Eq(start, (kept - 1 + k) / (lr * momentum)), "… per weight.")
    result.step(Eq(published, lr * kept ** (-2 * number - 1)), "The learning rate.")
    return result
