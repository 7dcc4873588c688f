"""Symbols of the derivations, with their names in code."""

import sympy

lr, wd, grad_norm, norm, sq_norm = sympy.symbols("lr wd grad_norm norm sq_norm", positive=True)
grad_norm_min, grad_norm_max = sympy.symbols("grad_norm_min grad_norm_max", positive=True)
next_norm, next_sq_norm, effective_lr, rotation = sympy.symbols(
    "next_norm next_sq_norm effective_lr rotation", positive=True
)
relaxation_time, delta = sympy.symbols("relaxation_time delta", positive=True)
intrinsic_lr = sympy.Symbol("intrinsic_lr", positive=True)
momentum, turn, dim = sympy.symbols("momentum turn dim", positive=True)
beta1, beta2, shrink = sympy.symbols("beta1 beta2 shrink", positive=True)
multiplier = sympy.Symbol("multiplier", real=True)
sq_lower, sq_upper, next_sq_lower, next_sq_upper = sympy.symbols(
    "sq_lower sq_upper next_sq_lower next_sq_upper", positive=True
)
lower, upper, product = sympy.symbols("lower upper product", positive=True)

# the map r⁺ = a r + b/r depends on two combinations only: a = (1-ηλ)² and b = (ηg̃)²
a, b, b_min, b_max = sympy.symbols("a b b_min b_max", positive=True)

# Symbols of known sign express ranges: a number above r is r + c or r(1 + c), a number in (0, 1) is 1/(1 + s).
c, d = sympy.symbols("c d", nonnegative=True)
s, t = sympy.symbols("s t", positive=True)

# ranges of λ at given η
BELOW_ONE = {wd: 1 / (lr * (1 + s))}  # 0 < ηλ < 1
BELOW_TWO = {wd: 2 / (lr * (1 + s))}  # 0 < ηλ < 2
