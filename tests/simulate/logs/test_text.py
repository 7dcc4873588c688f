"""Texts that trainings printed, in the forms of many tools: losses as written, and nothing of the evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from tests.simulate.logs.examples import COUNT, GRADIENTS, LOSSES, ONE, TEXTS
from tests.simulate.logs.printed_examples import PRINTED


@pytest.mark.parametrize("example", [*TEXTS, *PRINTED], ids=lambda example: example.name)
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
    description = simulate.describe_log(log)
    assert description.startswith(f"{example.form}: {COUNT} rows, ")
    assert "\n" not in description


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
def test_numbers_survive_a_line(data, tmp_path_factory):
    count = data.draw(st.integers(2, 30))
    numbers = st.lists(st.floats(-1e6, 1e6).map(lambda number: number or 0.0), min_size=count, max_size=count)
    columns = {
        data.draw(st.sampled_from(["loss", "Loss", "train_loss", "train/loss", "train loss", "lm loss"])): "loss",
        data.draw(st.sampled_from(["lr", "learning rate", "LR", "train/lr"])): "lr",
        data.draw(st.sampled_from(["grad_norm", "grad norm", "gnorm", "total_grad_norm"])): "gradient_norm",
    }
    values = {name: data.draw(numbers) for name in columns}
    step_name = data.draw(st.sampled_from(["step", "Step", "iter", "iteration", "global_step", "completed step"]))
    steps = data.draw(st.lists(st.integers(0, 10**7), min_size=count, max_size=count, unique=True).map(sorted))
    total = data.draw(st.sampled_from(["", "/100000000", " / 100000000"]))
    equals = data.draw(st.sampled_from([": ", "=", ":", " = ", " "]))
    between = data.draw(st.sampled_from([", ", " | ", "  ", "; ", " - ", "\t"]))
    prefix = data.draw(st.sampled_from(["", "[rank0]: ", "2025-01-01 10:00:00,123 - root - INFO - ", "INFO:trainer:"]))
    unit = data.draw(
        st.sampled_from(["", f"{between}300.00ms", f"{between}tok/s{equals}1,234", f"{between}mem{equals}1.2GiB(3%)"])
    )
    every = data.draw(
        st.sampled_from(["", "validation loss: 9.9\n", "eval step 7 | loss 9.9\n", "Saving step_100.pt\n"])
    )
    text = ""
    for row in range(count):
        pairs = [f"{step_name}{equals}{steps[row]}{total}"]
        pairs += [f"{name}{equals}{values[name][row]!r}" for name in data.draw(st.just(list(columns)))]
        text += prefix + between.join(pairs) + unit + "\n" + every
    path = tmp_path_factory.mktemp("text") / "log"
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == steps
    for name, variable in columns.items():
        assert log[variable].values.tolist() == values[name], variable


def test_lines_of_one_pattern_read_like_others(tmp_path):
    """A line that the pattern of an earlier one fits gives what it gives alone."""
    texts = [
        "step 1 loss 2.5 lr 0.1",
        "step 10 loss nan lr 0.1",
        "step 20 loss -inf lr 1e-3",
        "step 30 loss 1,234.5 lr .5",
    ]
    texts += ["step   40 loss 2.5 lr 0.1 extra 7", "step 50 lr 0.1 loss 3", "step 60 loss2 9 loss 4 lr 0.1"]
    path = tmp_path / "log"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    log = simulate.read_log(path)
    np.testing.assert_array_equal(log.loss, [2.5, np.inf, np.inf, 1234.5, 2.5, 3, 4])
    np.testing.assert_array_equal(log.lr, [0.1, 0.1, 1e-3, 0.5, 0.1, 0.1, 0.1])
    for row, text in enumerate(texts):
        path.write_text(text + "\n", encoding="utf-8")
        np.testing.assert_array_equal(simulate.read_log(path).loss, log.loss[row : row + 1])


def test_losses_of_the_evaluation_are_not_taken(tmp_path):
    path = tmp_path / "log"
    for text in ("step 1: val loss 2.5", "Test: [1/10] Loss 2.5", "eval step 3 | loss 2.5", "Validation: loss=2.5"):
        path.write_text(f"{text}\n" * 5, encoding="utf-8")
        with pytest.raises(ValueError, match="loss"):
            simulate.read_log(path)


@pytest.mark.parametrize("first", [0, 1])
def test_a_number_after_a_slash_is_the_total_if_it_stays(first, tmp_path):
    """The totals may change a few times, as after a restart with another number of steps."""
    path = tmp_path / "log"
    steps = range(first, COUNT + first)
    text = "".join(
        f"step {step}/{30 + step // 20} loss {loss} lr 0.1\n" for step, loss in zip(steps, LOSSES, strict=True)
    )
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == list(steps)
    assert log.loss.values.tolist() == LOSSES
    assert "epoch" not in log


@pytest.mark.parametrize("ranks", [(0, 1), (0, 1, 2, 3)])
def test_of_several_processes_the_first_one_counts(ranks, tmp_path):
    path = tmp_path / "log"
    text = "".join(f"rank: {rank}, step: {step}, loss: {loss + rank}\n" for step, loss, _ in ROWS for rank in ranks)
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == ONE
    assert log.loss.values.tolist() == LOSSES
    assert f"{COUNT * (len(ranks) - 1)} rows are left out: 'rank'" in log.attrs["remarks"][0]
    # the rank of a matrix is no process
    path.write_text(text.replace("rank: 1", "rank: 8"), encoding="utf-8")
    assert "left out: 'rank'" not in " ".join(simulate.read_log(path).attrs["remarks"])


def test_the_last_line_may_be_incomplete(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"step {t} loss {t}.5 lr 0.1\n" for t in range(9)) + "step 9 loss 9.", encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == list(range(9))
    assert "incomplete" in log.attrs["remarks"][0]


ROWS = list(zip(ONE, LOSSES, GRADIENTS, strict=True))


def check_rows(log, form):
    assert log.attrs["form"] == form
    assert log.step.values.tolist() == ONE
    assert log.loss.values.tolist() == LOSSES
    assert log.gradient_norm.values.tolist() == GRADIENTS
    assert log.lr.notnull().all()
    assert "norm" not in log


LLMC_TABLE = """\
Multi-GPU support is disabled. Using a single GPU.
+-----------------------+--------------------------+
| Parameter             | Value                    |
+-----------------------+--------------------------+
| learning rate (LR)    | 6.000000e-04             |
| weight decay          | 1.000000e-01             |
| max_steps             | -1                       |
+-----------------------+--------------------------+
allocating 237 MiB for parameters
val loss 11.009121
"""


@pytest.mark.parametrize(
    "line", ["step {:4d}/18865 | loss {:.6f} (+nanz)| norm {:.4f} (+nanz)| lr 8.6e-07 | 9 tok/s\n"]
)
def test_a_table_of_settings_before_the_log(line, tmp_path):
    path = tmp_path / "log"
    path.write_text(LLMC_TABLE + "".join(line.format(*row) for row in ROWS) + "val loss 9.9\n", encoding="utf-8")
    check_rows(simulate.read_log(path), "llm.c log")


def test_the_log_file_of_llmc(tmp_path):
    path = tmp_path / "main.log"
    line = "s:{} trl:{:.4f} lr:0.000001 norm:{:.2f}\n"
    text = "".join(f"s:{row[0]} tel:9.9\ns:{row[0]} eval:0.28\n" * (row[0] == 7) + line.format(*row) for row in ROWS)
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    check_rows(log, "llm.c log")
    assert log.attrs["columns"] == {"step": "s", "loss": "trl", "lr": "lr", "gradient": "norm"}
    assert simulate.read_log(path, names={"loss": "trl", "step": "s"}).loss.values.tolist() == LOSSES
    path.write_text("".join(f"s:{step} trl:{loss}\n" for step, loss, _ in ROWS), encoding="utf-8")
    assert simulate.read_log(path).loss.values.tolist() == LOSSES


@pytest.mark.parametrize("indent", ["", " samples/sec: 63.6 | "])
@pytest.mark.parametrize("other_loss", ["lm_loss", "loss"])
def test_steps_that_are_printed_twice_are_one_row(indent, other_loss, tmp_path):
    path = tmp_path / "log"
    text = "".join(
        f"[Rank 0] step={step}, skipped=0, mom=[[0.9, 0.95]]\n"
        f"steps: {step} loss: {loss:.4f} iter time (s): 1.2 samples/sec: 12\n"
        f"{indent}iteration {step:8d}/  320000 | elapsed time per iteration (ms): 1200.0 | learning rate: 6.0E-05 | "
        f"{other_loss}: {loss:.6E} | grad norm: {gradient} | loss scale: 65536.0 |\ntime (ms)\n"
        for step, loss, gradient in ROWS
    )
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == ONE
    assert log.loss.values.tolist() == LOSSES
    assert log.lr.values.tolist() == [6e-5] * COUNT
    assert log.gradient_norm.values.tolist() == GRADIENTS


def test_another_loss_of_the_same_step_is_another_row(tmp_path):
    """Lines whose losses differ are not joined."""
    path = tmp_path / "log"
    text = "".join(f"iter {step} loss {loss} lr 0.1\n" for step, loss, _ in ROWS)
    path.write_text(text + "".join(f"step {step} loss 9.9 lr 0.2\n" for step in ONE[:20]), encoding="utf-8")
    log = simulate.read_log(path)
    assert log.loss.values.tolist() == LOSSES
    assert log.lr.values.tolist() == [0.1] * COUNT
