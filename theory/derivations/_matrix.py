"""Equilibrium of Muon, from the correlation of polar factors of Gaussian matrices (docs/mathematics.md §7)."""

from __future__ import annotations

import sympy
from sympy import Rational, cos, pi, sin, sqrt

from theory.derivations._adaptive import S, decoupled_decay
from theory.derivations._derivation import Derivation, Eq
from theory.derivations._symbols import dim, lr, norm, turn, wd


def muon() -> Derivation:
    """Derive the correlation of polar factors of square matrices, and the equilibrium of Muon."""
    order = sympy.Symbol("order", integer=True, nonnegative=True)
    angle, c, chi, artanh = sympy.symbols("angle c chi artanh", positive=True)
    coefficient, correlation = sympy.symbols("coefficient correlation", positive=True)
    decay_factor, q = sympy.symbols("decay_factor repetition", positive=True)
    half, lower, upper = Rational(1, 2), 2 * order + 1, 2 * order + 3

    def antiderivative(at: sympy.Expr) -> sympy.Expr:
        first, second = ((order + multiple * half) * at for multiple in (1, 3))
        # expanded, sympy knows the sines of multiples of π/2
        return sin(first.expand()) / (order + half) - sin(second.expand()) / (order + 3 * half)

    decoupled = decoupled_decay()
    values_of_moments = {decoupled.symbols["instant"]: 1, decoupled.symbols["summed"]: q}
    result = Derivation(
        "Equilibrium of Muon.",
        "Gaussian gradients, independent in time; square matrices with many rows; D = `dim` = number of rows; "
        "0 < ηλ < 1; s = `decay_factor` = 1-ηλ; q = `repetition` = Σ_n s^|n| times the correlation of "
        "directions n steps apart.",
        [lr, wd, dim, order, c, correlation, chi, artanh, decay_factor, q, norm, turn],
        {
            coefficient: sympy.expand(((antiderivative(pi) - antiderivative(sympy.Integer(0))) / pi) ** 2),
            correlation: 4 / pi**2 * (chi + (chi - c) / c**2 + artanh - (artanh - c) / c**2),
            norm: sqrt(decoupled[-2].rhs.subs(values_of_moments)),
            turn: decoupled[-1].rhs.subs(values_of_moments),
            decay_factor: S,
        },
    )
    result.step(
        Eq(
            2 * sin((order + 1) * angle) * sin(angle / 2), cos((order + half) * angle) - cos((order + 3 * half) * angle)
        ),
        "Large Gaussian matrices with entries of variance 1/rows are free circular elements a. Products a(a*a)^k are "
        "orthogonalized to a U_k(a*a), and entries of correlation c multiply their correlation by c^(2k+1). With the "
        "eigenvalues 4cos²(θ/2) of a*a, weighted by themselves, U_k is sin((k+1)θ)/sin θ in the weight (2/π) sin²θ. "
        "The polar factor is a(a*a)^(-1/2). Its coefficient is therefore the integral of (2/π) sin((k+1)θ) sin(θ/2).",
    )
    result.step(
        Eq(sympy.diff(antiderivative(angle), angle), cos((order + half) * angle) - cos((order + 3 * half) * angle)),
        "This has an antiderivative.",
    )
    result.step(
        Eq(coefficient, 4 / pi**2 * (1 / lower + 1 / upper) ** 2),
        "`coefficient` is the square of the integral from 0 to π.",
    )
    result.step(
        Eq((1 / lower + 1 / upper) ** 2, 1 / lower**2 + 1 / upper**2 + 1 / lower - 1 / upper), "Partial fractions."
    )
    result.step(
        Eq(correlation, 4 / pi**2 * ((1 + c**-2) * chi + (1 - c**-2) * artanh)),
        "Sum over k with the factors c^(2k+1), where `chi` = χ₂(c) = Σ_k c^(2k+1)/(2k+1)² and `artanh` = artanh c. "
        "Terms with 2k+3 begin one power later.",
    )
    result.step(
        Eq(correlation.subs(correlation, 4 / pi**2 * (2 * chi)).subs(chi, pi**2 / 8), sympy.Integer(1)),
        "Check: at c = 1 only 2χ₂(1) = π²/4 remains, and equal matrices have the correlation 1.",
    )
    result.step(Eq(norm**2, lr * dim * q / (wd * (2 - lr * wd))), "From `decoupled_decay` with E[u²] = 1.")
    result.step(
        Eq(1 - turn, decay_factor + (1 - decay_factor**2) * (q - 1) / (2 * decay_factor * q)),
        "From `decoupled_decay`, with cos θ in terms of s. This is the formula of `lion` with another q.",
    )
    return result
