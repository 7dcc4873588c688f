"""Machine code of the inner loops: it divides several trajectories at once, several times as fast as one by one.

Each loop is compiled again, and its assembly is searched for packed divisions. As a control, a loop with the error
model of Python, which tests each divisor, must not have them. The exit status is 1 if a loop is not as expected.
"""

import platform
import re
import sys

import numba
import numpy as np

from simulate.maps import _kernels
from simulate.maps.iteration import initial_norm_state
from simulate.period_model import _kernel

PACKED = {"x86_64": r"\bv?divpd\b", "AMD64": r"\bv?divpd\b", "aarch64": r"\bfdiv\s+v", "arm64": r"\bfdiv(\.2d|\s+v)"}


def constant(kernel):
    none = np.empty((300, 0))
    rows = _kernels.Rows(0, 0, none, none, none, np.zeros((0, 4)))
    kernel(initial_norm_state(np.ones(300)), np.full(300, 0.9), np.full(300, 0.1), 8, rows)


def reduced(kernel):
    state = np.zeros((40, len(_kernel.STATES)))
    kernel(
        state, np.ones((40, _kernel.CONSTANTS)), np.uint64(0), np.arange(40), 0, 0, 0, np.empty((3, 0, 0)),
        np.zeros((0, _kernel.STATISTICS)), 0, 1, 0, 0.1, 0.1,
    )  # fmt: skip


LOOPS = {
    "map": (_kernels.iterate_constant, constant, {}, True),
    "map by fours": (_kernels.iterate_constant_by_fours, constant, {}, True),
    "reduced model": (_kernel.iterate_oscillation, reduced, {}, True),
    "control: error model of Python": (_kernels.iterate_constant, constant, {"error_model": "python"}, False),
}


def divides_packed(kernel, call, changes):
    # compile again: code from the cache has no assembly text
    options = {
        name: value for name, value in kernel.targetoptions.items() if name in ("nogil", "error_model", "fastmath")
    }
    if changes:
        options = {"nogil": True, **changes}
    compiled = numba.njit(**options)(kernel.py_func)
    call(compiled)
    (text,) = compiled.inspect_asm().values()
    return bool(re.search(PACKED[platform.machine()], text))


if __name__ == "__main__":
    if platform.machine() not in PACKED:
        sys.exit(print(f"no pattern for the divisions of {platform.machine()}; nothing is compared"))
    failed = False
    for name, (kernel, call, changes, expected) in LOOPS.items():
        packed = divides_packed(kernel, call, changes)
        failed |= packed != expected
        print(f"{name:32} {'packed' if packed else 'one by one'} ({'as expected' if packed == expected else 'WRONG'})")
    sys.exit(failed)
