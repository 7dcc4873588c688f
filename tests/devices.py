"""Tests that are the same on the processor and, with `pytest -m gpu`, on a GPU."""

import pytest

every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
