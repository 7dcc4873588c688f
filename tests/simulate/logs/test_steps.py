"""Steps of the rows: iterations within epochs, rows that are epochs, rows without a step, evaluation rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate

RNG = np.random.default_rng(0)


def losses(count):
    return RNG.uniform(0.1, 0.2, count)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    epochs=st.integers(2, 8),
    rows=st.integers(2, 30),
    spacing=st.integers(1, 5),
    first=st.integers(0, 1),
    first_epoch=st.integers(0, 1),
    name=st.sampled_from(["iter", "batch", "step", "iteration"]),
    cut=st.integers(0, 1),
)
def test_iterations_within_epochs_become_steps(epochs, rows, spacing, first, first_epoch, name, cut):
    inner = np.tile(np.arange(rows) * spacing + (first * spacing), epochs)
    epoch = np.repeat(np.arange(epochs) + first_epoch, rows)
    stop = inner.size - cut * (rows // 2)
    log = simulate.read_log({"epoch": epoch[:stop], name: inner[:stop], "loss": losses(stop)})
    length = rows * spacing
    assert log.attrs["epoch_length"] == length
    expected = (epoch - first_epoch) * length + inner
    assert log.step.values.tolist() == expected[:stop].tolist()
    assert log.attrs["row_unit"] == "steps"
    assert log.attrs["columns"]["step"] == name


def test_a_restart_within_epochs():
    inner = [*range(10)] * 3 + [*range(5, 10), *range(10)]
    epoch = [0] * 10 + [1] * 10 + [2] * 10 + [2] * 5 + [3] * 10
    log = simulate.read_log({"epoch": epoch, "iter": inner, "loss": np.arange(45.0)})
    assert log.step.values.tolist() == list(range(40))
    assert log.loss.values.tolist() == [*range(25), *range(30, 45)]


def test_a_step_that_grows_is_taken_before_one_that_does_not():
    columns = {"epoch": np.repeat([0, 1], 10), "iter": np.tile(np.arange(10), 2), "num_updates": np.arange(20) * 5}
    log = simulate.read_log({**columns, "loss": losses(20)})
    assert log.step.values.tolist() == (np.arange(20) * 5).tolist()
    assert log.attrs["columns"]["step"] == "num_updates"


def test_rows_without_a_loss_do_not_count():
    # validation rows have the epoch as their step
    step = [number for t in range(1, 301) for number in ([t, t // 50] if t % 50 == 0 else [t])]
    loss = [value for t in range(1, 301) for value in ([t * 1.0, np.nan] if t % 50 == 0 else [t * 1.0])]
    accuracy = [0.3 if np.isnan(value) else np.nan for value in loss]
    log = simulate.read_log({"step": step, "loss": loss, "coco/AP": accuracy})
    assert log.step.values.tolist() == list(range(1, 301))
    assert np.isfinite(log.loss).all()


class TestEpochs:
    def test_rows_are_epochs(self):
        log = simulate.read_log({"epoch": np.arange(20), "loss": losses(20)})
        assert log.attrs["row_unit"] == "epochs"
        assert log.step.values.tolist() == list(range(20))
        assert log.epoch.values.tolist() == list(range(20))
        assert "epoch_length" not in log.attrs

    def test_steps_per_row_turns_them_into_steps(self):
        log = simulate.read_log({"epoch": np.arange(1, 21), "loss": losses(20)}, steps_per_row=50)
        assert log.step.values.tolist() == (np.arange(1, 21) * 50).tolist()
        assert (log.attrs["row_unit"], log.attrs["epoch_length"]) == ("steps", 50)

    def test_several_rows_of_an_epoch_are_numbered(self):
        log = simulate.read_log({"epoch": np.repeat(np.arange(4), 5), "loss": losses(20)})
        assert log.attrs["row_unit"] == "rows"
        assert log.step.values.tolist() == list(range(20))
        assert "does not grow by one" in log.attrs["remarks"][0]

    def test_fractions_of_epochs_are_numbered(self):
        log = simulate.read_log({"epoch": np.arange(20) / 50, "loss": losses(20)})
        assert log.attrs["row_unit"] == "rows"
        assert "fractions" in log.attrs["remarks"][0]

    def test_a_restart_repeats_epochs(self):
        log = simulate.read_log({"epoch": [*range(10), *range(7, 20)], "loss": np.arange(23.0)})
        assert log.step.values.tolist() == list(range(20))
        assert log.attrs["row_unit"] == "epochs"

    @pytest.mark.parametrize(("spacing", "expected"), [(1, 100), (5, 100), (50, None)])
    def test_epochs_beside_steps_give_their_length(self, spacing, expected):
        step = np.arange(0, 1000, spacing)
        log = simulate.read_log({"step": step, "epoch": step // 100, "loss": losses(step.size)})
        if expected is None:
            assert log.attrs.get("epoch_length", 100) == 100
        else:
            assert log.attrs["epoch_length"] == expected


class TestOptions:
    COLUMNS = {"step": np.tile(np.arange(10), 3), "loss": np.arange(30.0)}  # noqa: RUF012

    def test_rows_are_numbered(self):
        log = simulate.read_log(self.COLUMNS, steps_by_row=True)
        assert log.step.values.tolist() == list(range(30))
        assert log.attrs["row_unit"] == "rows"
        assert "step" not in log.attrs["columns"]

    def test_rows_lie_apart(self):
        for options in ({}, {"steps_by_row": True}):
            log = simulate.read_log(self.COLUMNS, steps_per_row=20, **options)
            assert log.step.values.tolist() == [20 * row for row in range(30)]
            assert log.attrs["row_unit"] == "steps"

    def test_a_step_may_be_left_out(self):
        log = simulate.read_log(self.COLUMNS, names={"step": ""})
        assert log.step.values.tolist() == list(range(30))

    def test_another_column_may_be_the_step(self):
        log = simulate.read_log({**self.COLUMNS, "count": np.arange(30) * 3}, names={"step": "count"})
        assert log.step.values.tolist() == [3 * row for row in range(30)]

    @pytest.mark.parametrize("steps_per_row", [0, -1, 1.5])
    def test_a_distance_must_be_a_number_of_steps(self, steps_per_row):
        with pytest.raises((TypeError, ValueError), match="steps_per_row must be"):
            simulate.read_log(self.COLUMNS, steps_per_row=steps_per_row)


def test_a_constant_number_is_no_step():
    log = simulate.read_log({"batch": [32] * 20, "loss": losses(20)})
    assert log.step.values.tolist() == list(range(20))
