"""Derivation of a formula: a list of sympy relations with reasons, each of which sympy can prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import GreaterThan, LessThan, Relational, StrictGreaterThan, StrictLessThan

# Keep relations as written. By default sympy would replace those that it knows to be true by `True`.
Eq = partial(sympy.Eq, evaluate=False)
Ge, Gt = partial(sympy.Ge, evaluate=False), partial(sympy.Gt, evaluate=False)
Le, Lt = partial(sympy.Le, evaluate=False), partial(sympy.Lt, evaluate=False)

Values = Mapping[Any, Any]
Substitutions = list[tuple[Any, Any]]


class Derivation(list[Any]):
    """List of sympy relations that ends with a published formula.

    Parameters
    ----------
    title : name of the result.
    assumptions : one sentence with the range in which every step holds.
    symbols : symbols that the assumptions or the formula name; the attribute `symbols` has them by their names in code.
    definitions : expressions of derived symbols, substituted into each relation in their order. What remains is an
        identity that sympy can prove. The expressions come from sympy itself (`solve`, `diff`, a scalar product), so
        the proved steps show that the formula follows from the definitions.

    Examples
    --------
    >>> x, y = sympy.symbols("x y", positive=True)
    >>> square = Derivation("Square of y = 2x.", "x > 0.", [x, y], {y: 2 * x})
    >>> square.step(sympy.Eq(y**2, 4 * x**2), "Square both sides.")
    >>> square.unproved()
    []
    >>> square[-1] = sympy.Eq(y**2, 5 * x**2)
    >>> square.unproved()
    [0]
    """

    def __init__(self, title: str, assumptions: str, symbols: Iterable[Any], definitions: Values | None = None) -> None:
        super().__init__()
        self.title = title
        self.assumptions = assumptions
        self.symbols = {symbol.name: symbol for symbol in symbols}
        self.definitions = dict(definitions or {})
        self.reasons: list[str] = []
        self._ranges: list[tuple[Values, ...]] = []
        self._case: list[Any] = []

    def step(self, relation: Any, reason: str, *ranges: Values, case: Any = None) -> None:
        """Append a relation.

        Parameters
        ----------
        relation : unevaluated sympy relation.
        reason : one sentence that justifies the step.
        ranges : substitutions that express a range by symbols of known sign, for example r = r* + d with d >= 0.
            Several substitutions must cover the range together. The relation is proved for each of them.
        case : condition under which the relation holds. A later `Piecewise` collects the cases.
        """
        self.append(relation)
        self.reasons.append(reason)
        self._ranges.append(ranges or ({},))
        self._case.append(case)

    def proves(self, index: int) -> bool:
        """Return whether sympy proves a step from the definitions and the signs of the symbols.

        An equation is proved if the difference of its sides is identically 0. An inequality is proved if sympy knows
        the sign of the difference of its sides. A `Piecewise` is proved if an earlier step proves each branch.
        """
        relation = self[index]
        if not isinstance(relation, Relational):
            return False
        if isinstance(relation.rhs, sympy.Piecewise):
            return all(self._proves_case(relation.lhs, formula, case, index) for formula, case in relation.rhs.args)
        return all(_is_proved(relation, [*self.definitions.items(), *range_.items()]) for range_ in self._ranges[index])

    def unproved(self) -> list[int]:
        """Return the indices of the steps that sympy cannot prove. The list is empty for a correct derivation."""
        return [index for index in range(len(self)) if not self.proves(index)]

    def _proves_case(self, lhs: Any, formula: Any, condition: Any, before: int) -> bool:
        return any(self._case[i] == condition and self[i] == Eq(lhs, formula) and self.proves(i) for i in range(before))

    def _repr_markdown_(self) -> str:
        lines = [f"**{self.title}** {self.assumptions}", ""]
        for number, (relation, reason, case) in enumerate(zip(self, self.reasons, self._case, strict=True), start=1):
            condition = "" if case in (None, sympy.true) else f" (if ${_latex(case)}$)"
            lines += [f"{number}. {reason}{condition}", "", f"   $${_latex(relation)}$$", ""]
        return "\n".join(lines)

    def _repr_latex_(self) -> str:
        rows = r" \\ ".join(_latex(relation) for relation in self)
        return rf"$$\begin{{gathered}} {rows} \end{{gathered}}$$"


def _latex(expression: Any) -> str:
    # atoms include the variable of a limit, which is no free symbol
    names = {symbol: LATEX[symbol.name] for symbol in expression.atoms(sympy.Symbol) if symbol.name in LATEX}
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
    "intrinsic_lr": r"(\eta\lambda)",
    "gamma": r"\gamma",
    "fourth": "u",
    "equilibrium_fourth": "u_*",
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


def _is_proved(relation: Any, values: Substitutions) -> bool:
    if isinstance(relation, sympy.Equality):
        return _vanishes(_insert(relation.lhs, values) - _insert(relation.rhs, values))
    if isinstance(relation, (GreaterThan, LessThan, StrictGreaterThan, StrictLessThan)):
        difference = _insert(relation.gts, values) - _insert(relation.lts, values)
        strict = isinstance(relation, (StrictGreaterThan, StrictLessThan))
        forms: Iterable[Any] = (sympy.factor(sympy.together(difference)), sympy.factor(sympy.simplify(difference)))
        return any(bool(form.is_positive if strict else form.is_nonnegative) for form in forms)
    return False


def _insert(expression: Any, values: Substitutions) -> Any:
    expression = expression.doit()
    for symbol, value in values:
        expression = expression.subs(symbol, value)
    return expression.doit()


def _vanishes(expression: Any) -> bool:
    """Return whether an expression is identically 0.

    This is so if it simplifies to 0, or if it is constant and 0 where all symbols are 1.
    """
    # evaluate at one point first, with constants for functions: simplifying an expression that is not 0 can take long
    trial = expression.replace(AppliedUndef, lambda *_: sympy.Rational(7, 5)).doit()
    point = {symbol: sympy.Rational(3 + 2 * i, 11 + i) for i, symbol in enumerate(_sorted_symbols(trial))}
    value = trial.subs(point).evalf()
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
