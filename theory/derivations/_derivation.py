"""A derivation: sympy relations, the reason of each step, and what sympy needs to prove every one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import sympy
from sympy.core.relational import GreaterThan, LessThan, Relational, StrictGreaterThan, StrictLessThan

# Relations of a derivation stand as they are written, also where sympy sees at once that they are true.
Eq = partial(sympy.Eq, evaluate=False)
Ge, Gt = partial(sympy.Ge, evaluate=False), partial(sympy.Gt, evaluate=False)
Le, Lt = partial(sympy.Le, evaluate=False), partial(sympy.Lt, evaluate=False)

Values = Mapping[Any, Any]
Substitutions = list[tuple[Any, Any]]


class Derivation(list[Any]):
    """List of sympy relations that leads to a published formula, its last item.

    Parameters
    ----------
    title : what is derived.
    assumptions : one sentence on the range in which every step holds.
    symbols : the symbols by their names in code (`lr`, `wd`, `grad_norm`, …).
    definitions : what a derived symbol stands for. Substituted into a relation (in their order), they leave an
        identity that sympy can prove; a definition comes from sympy (`solve`, `diff`, a scalar product), so proving
        the steps proves that the formula follows from the definitions.

    Examples
    --------
    >>> x, y = sympy.symbols("x y", positive=True)
    >>> square = Derivation("Square of y = 2x.", "x > 0.", {"x": x, "y": y}, {y: 2 * x})
    >>> square.step(sympy.Eq(y**2, 4 * x**2), "Square both sides.")
    >>> square.unproved()
    []
    >>> square[-1] = sympy.Eq(y**2, 5 * x**2)
    >>> square.unproved()
    [0]
    """

    def __init__(
        self, title: str, assumptions: str, symbols: Mapping[str, Any], definitions: Values | None = None
    ) -> None:
        super().__init__()
        self.title = title
        self.assumptions = assumptions
        self.symbols = dict(symbols)
        self.definitions = dict(definitions or {})
        self.reasons: list[str] = []
        self._given: list[tuple[Values, ...]] = []
        self._case: list[Any] = []

    def step(self, relation: Any, reason: str, *given: Values, case: Any = None) -> None:
        """Append a relation.

        Parameters
        ----------
        relation : sympy relation, not yet evaluated.
        reason : one sentence: why the step is legal.
        given : values that express a range in symbols of known sign, such as r = r* + d with d >= 0. With several
            sets, which together must cover the range, the relation is proved for each.
        case : the condition under which the relation holds; a later `Piecewise` collects such cases.

        Examples
        --------
        >>> x, d = sympy.Symbol("x", positive=True), sympy.Symbol("d", nonnegative=True)
        >>> above = Derivation("x² >= 1.", "x >= 1.", {"x": x})
        >>> above.step(sympy.Ge(x**2, 1), "x = 1 + d.", {x: 1 + d})
        >>> above.proves(0)
        True
        """
        self.append(relation)
        self.reasons.append(reason)
        self._given.append(given or ({},))
        self._case.append(case)

    def proves(self, index: int) -> bool:
        """Whether sympy proves the step, from the definitions and the signs of the symbols alone.

        An equation is proved when the difference of its sides is identically 0; an inequality when the difference is
        a quotient whose sign is plain; a `Piecewise` when each branch is the proved equation of its case.

        Examples
        --------
        >>> x = sympy.Symbol("x", positive=True)
        >>> sum_of_squares = Derivation("x + 1/x >= 2.", "x > 0.", {"x": x})
        >>> sum_of_squares.step(sympy.Ge(x + 1 / x, 2), "x + 1/x - 2 = (x - 1)²/x.")
        >>> sum_of_squares.proves(0)
        True
        """
        relation = self[index]
        if not isinstance(relation, Relational):
            return False
        if isinstance(relation.rhs, sympy.Piecewise):
            return all(self._proves_case(relation.lhs, formula, case, index) for formula, case in relation.rhs.args)
        return all(_proved(relation, [*self.definitions.items(), *given.items()]) for given in self._given[index])

    def unproved(self) -> list[int]:
        """Return the numbers of the steps that sympy does not prove: an empty list for a correct derivation.

        Examples
        --------
        >>> Derivation("Nothing.", "None.", {}).unproved()
        []
        """
        return [index for index in range(len(self)) if not self.proves(index)]

    def _proves_case(self, lhs: Any, formula: Any, condition: Any, before: int) -> bool:
        return any(self._case[i] == condition and self[i] == Eq(lhs, formula) and self.proves(i) for i in range(before))

    def _repr_markdown_(self) -> str:
        lines = [f"**{self.title}** {self.assumptions}", ""]
        for number, (relation, reason, case) in enumerate(zip(self, self.reasons, self._case, strict=True), start=1):
            where = "" if case in (None, sympy.true) else f" (if ${_latex(case)}$)"
            lines += [f"{number}. {reason}{where}", "", f"   $${_latex(relation)}$$", ""]
        return "\n".join(lines)

    def _repr_latex_(self) -> str:
        rows = r" \\ ".join(_latex(relation) for relation in self)
        return rf"$$\begin{{gathered}} {rows} \end{{gathered}}$$"


def _latex(expression: Any) -> str:
    names = {symbol: LATEX[symbol.name] for symbol in expression.free_symbols if symbol.name in LATEX}
    return str(sympy.latex(expression, symbol_names=names))


LATEX = {
    "lr": r"\eta",
    "wd": r"\lambda",
    "grad_norm": r"\tilde g",
    "grad_norm_min": r"\ell",
    "grad_norm_max": "L",
    "norm": r"\rho",
    "sq_norm": "r",
    "next_norm": r"\rho^+",
    "next_sq_norm": "r^+",
    "effective_lr": r"\tilde\eta",
    "rotation": r"\theta",
    "delta": r"\delta",
    "relaxation_time": r"\tau",
    "multiplier": "m",
    "sq_lower": "r_-",
    "sq_upper": "r_+",
    "next_sq_lower": "r_-^+",
    "next_sq_upper": "r_+^+",
    "lower": r"\rho_-",
    "upper": r"\rho_+",
    "product": "p",
    "momentum": r"\mu",
    "turn": r"(1-\cos\theta)",
    "dim": "d",
    "beta1": r"\beta_1",
    "beta2": r"\beta_2",
    "shrink": "E",
    "b_min": r"b_\ell",
    "b_max": "b_L",
    "norm_rise": "J",
    "outside_growth": r"\varphi",
}


def _proved(relation: Any, values: Substitutions) -> bool:
    if isinstance(relation, sympy.Equality):
        return _vanishes(_insert(relation.lhs, values) - _insert(relation.rhs, values))
    if isinstance(relation, (GreaterThan, LessThan, StrictGreaterThan, StrictLessThan)):
        difference = _insert(relation.gts, values) - _insert(relation.lts, values)
        strict = isinstance(relation, (StrictGreaterThan, StrictLessThan))
        forms: Iterable[Any] = (
            sympy.factor(sympy.together(difference)),
            sympy.factor(sympy.simplify(difference)),
        )
        return any(bool(form.is_positive if strict else form.is_nonnegative) for form in forms)
    return False


def _insert(expression: Any, values: Substitutions) -> Any:
    expression = expression.doit()
    for symbol, value in values:
        expression = expression.subs(symbol, value)
    return expression.doit()


def _vanishes(expression: Any) -> bool:
    """Whether an expression is identically 0: it simplifies to 0, or it is constant and 0 where all symbols are 1."""
    # an expression that is not 0 at some point need not be simplified, which can take for ever
    somewhere = {symbol: sympy.Rational(3 + 2 * i, 11 + i) for i, symbol in enumerate(_sorted_symbols(expression))}
    value = expression.subs(somewhere).evalf()
    if value.is_number and value.is_finite and abs(value) > _CLEARLY_NOT_ZERO:
        return False
    if sympy.simplify(expression) == 0:
        return True
    if not expression.free_symbols or any(sympy.simplify(expression.diff(s)) != 0 for s in expression.free_symbols):
        return False
    return bool(sympy.simplify(expression.subs(dict.fromkeys(expression.free_symbols, 1))) == 0)


def _sorted_symbols(expression: Any) -> list[Any]:
    return sorted(expression.free_symbols, key=str)


_CLEARLY_NOT_ZERO = 1e-6
