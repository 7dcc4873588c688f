"""Machine code of the inner loops: it divides several trajectories at once."""

import platform
import re

import numba
import numpy as np
import pytest

from simulate.maps import _kernels
from simulate.period_model import _kernel

PACKED = {"x86_64": r"\bv?divpd\b", "AMD64": r"\bv?divpd\b", "aarch64": r"\bfdiv\s+v", "arm64": r"\bfdiv(\.2d|\s+v)"}
BATCH = np.ones(300), np.full(300, 0.9), np.full(300, 0.1)
ENDS = np.zeros(300, dtype=np.int64), np.zeros(300, dtype=np.int64)


def constant(kernel):
    kernel(*BATCH, 0, 8, 0, 0, np.empty((300, 0)), np.zeros((0, 4)), *ENDS)


def by_fours(kernel):
    kernel(*BATCH, 0, 8, 0, 0, np.empty((300, 0)), *ENDS)


def reduced(kernel):
    state = np.zeros((40, len(_kernel.STATES)))
    kernel(
        state, np.ones((40, _kernel.CONSTANTS)), np.uint64(0), np.arange(40), 0, 0, 0, np.empty((3, 0, 0)),
        np.zeros((0, _kernel.STATISTICS)), 0, 1, 0, 0.1, 0.1,
    )  # fmt: skip


@pytest.mark.skipif(platform.machine() not in PACKED, reason="no pattern for the divisions of this processor")
@pytest.mark.parametrize(
    ("kernel", "call"),
    [
        (_kernels.iterate_constant, constant),
        (_kernels.iterate_constant_by_fours, by_fours),
        (_kernel.iterate_oscillation, reduced),
    ],
    ids=["map", "map by fours", "reduced model"],
)
def test_loops_divide_several_numbers_at_once(kernel, call):
    # compile again: code from the cache has no assembly text
    options = {
        name: value for name, value in kernel.targetoptions.items() if name in ("nogil", "error_model", "fastmath")
    }
    anew = numba.njit(**options)(kernel.py_func)
    call(anew)
    (text,) = anew.inspect_asm().values()
    assert re.search(PACKED[platform.machine()], text)


def test_with_the_error_model_of_python_loops_divide_one_by_one():
    # control: the error model of Python tests each divisor
    if platform.machine() not in PACKED:
        pytest.skip("no pattern for the divisions of this processor")
    slow = numba.njit(nogil=True, error_model="python")(_kernels.iterate_constant.py_func)
    constant(slow)
    (text,) = slow.inspect_asm().values()
    assert not re.search(PACKED[platform.machine()], text)
