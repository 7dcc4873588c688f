"""Parametrization of tests that run on the CPU and, with `pytest -m gpu`, on a GPU."""

import pytest

every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
