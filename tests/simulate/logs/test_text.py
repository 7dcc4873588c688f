"""Texts that trainings printed, in the forms of many tools: losses as written, and nothing of the evaluation."""

import numpy as np
import pytest

import simulate
from tests.simulate.logs.examples import TEXTS


@pytest.mark.parametrize("example", TEXTS, ids=lambda example: example.name)
def test_a_text_log_is_read(example, tmp_path):
    path = tmp_path / example.file_name
    path.write_text(example.text, encoding="utf-8", newline="")
    log = simulate.read_log(path)
    assert log.attrs["columns"] == {**log.attrs["columns"], **example.columns}
    assert log.step.values.tolist() == example.steps
    np.testing.assert_allclose(log.loss, example.losses, rtol=1e-12)
    assert log.attrs["form"] == example.form
    assert log.attrs["row_unit"] == example.unit
    assert log.attrs.get("epoch_length") == example.epoch_length
    if example.gradient is not None:
        np.testing.assert_allclose(log.gradient_norm, example.gradient, rtol=1e-12)
    assert example.remark in " ".join(log.attrs["remarks"])
