"""Tables: CSV of many tools, other delimiters, numbers without names, compressed files and other encodings."""

import bz2
import gzip
import lzma
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from tests.simulate.logs.examples import COUNT, GRADIENTS, LOSSES, ONE, TENS

ZEROS = list(range(COUNT))


def table(names, row, *, delimiter=",", before="", after=""):
    lines = [delimiter.join(names)] if names else []
    lines += [delimiter.join(str(cell) for cell in row(t)) for t in range(COUNT)]
    return before + "\n".join(lines) + "\n" + after


EXAMPLES = {
    "comments first": (
        table(
            ["epoch", "train_loss", "val_loss", "grad_norm", "weight_norm", "lr"],
            lambda t: (t + 1, LOSSES[t], 9.9, GRADIENTS[t], 30.0, 0.001),
            before="# Model: unet\n# Data: /data, 2 folds\n#\n",
        ),
        {"loss": "train_loss", "lr": "lr", "gradient": "grad_norm", "norm": "weight_norm", "epoch": "epoch"},
        ONE,
        "epochs",
        "CSV file",
    ),
    "Lightning": (
        table(
            ["epoch", "step", "train_loss_epoch", "train_loss_step", "val_loss"],
            lambda t: (0, 50 * t + 49, "", LOSSES[t], ""),
            after="0,1512,,,9.9\n0,1512,8.8,,\n",
        ),
        {"step": "step", "loss": "train_loss_step"},
        [50 * t + 49 for t in ZEROS],
        "steps",
        "Lightning CSVLogger",
    ),
    "Hugging Face": (
        table(
            ["", "loss", "grad_norm", "learning_rate", "epoch", "step", "eval_loss", "train_loss"],
            lambda t: (t, LOSSES[t], GRADIENTS[t], 5e-5, t / 50, TENS[t], "", ""),
            after="30,,,,0.6,305,9.9,\n31,,,,0.6,305,,8.8\n",
        ),
        {"step": "step", "loss": "loss", "lr": "learning_rate", "gradient": "grad_norm", "epoch": "epoch"},
        TENS,
        "steps",
        "Hugging Face log history",
    ),
    "YOLO": (
        table(
            [
                "               epoch",
                "      train/box_loss",
                "      train/obj_loss",
                "      train/cls_loss",
                "     val/box_loss",
                " x/lr0",
            ],
            lambda t: (f"      {t}", f"  {LOSSES[t] - 0.3:.4f}", " 0.2", " 0.1", " 9.9", " 0.01"),
        ),
        {"lr": "x/lr0", "epoch": "epoch", "loss": "train/box_loss + train/obj_loss + train/cls_loss"},
        ZEROS,
        "epochs",
        "YOLO results",
    ),
    "timm": (
        table(
            ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"], lambda t: (t, LOSSES[t], 9, 1, 5, 0.1)
        ),
        {"loss": "train_loss", "lr": "lr", "epoch": "epoch"},
        ZEROS,
        "epochs",
        "timm summary",
    ),
    "Keras": (
        table(["epoch", "accuracy", "loss", "val_accuracy", "val_loss"], lambda t: (t, 0.5, LOSSES[t], 0.5, 9.9)),
        {"loss": "loss", "epoch": "epoch"},
        ZEROS,
        "epochs",
        "CSV file",
    ),
    "Weights & Biases panel": (
        table(
            ['"Step"', '"sun-1 - train/loss"', '"sun-1 - train/loss__MIN"', '"sun-1 - train/loss__MAX"'],
            lambda t: (f'"{TENS[t]}"', f'"{LOSSES[t]}"', '"0"', '"9"'),
        ),
        {"step": "Step", "loss": "sun-1 - train/loss"},
        TENS,
        "steps",
        "export of a panel of Weights & Biases",
    ),
    "Weights & Biases history": (
        table(["", "_step", "_runtime", "train/loss", "train/global_step"], lambda t: (t, t, 1.0, LOSSES[t], TENS[t])),
        {"step": "train/global_step", "loss": "train/loss"},
        TENS,
        "steps",
        "Weights & Biases history",
    ),
    "TensorBoard": (
        table(["Wall time", "Step", "Value"], lambda t: (1.7e9 + t, TENS[t], LOSSES[t])),
        {"step": "Step", "loss": "Value"},
        TENS,
        "steps",
        "TensorBoard download",
    ),
    "percentages": (
        table(["step", "train loss", "train error", "lr"], lambda t: (t, f"{100 * LOSSES[t]:.2f}%", "10%", "1e-3")),
        {"step": "step", "loss": "train loss", "lr": "lr"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "blanks": (
        table(["step", "  loss", "   lr"], lambda t: (f"{t:5d}", f"{LOSSES[t]:8.4f}", "  0.01"), delimiter=" "),
        {"step": "step", "loss": "loss", "lr": "lr"},
        ZEROS,
        "steps",
        "table separated by blanks",
    ),
    "printed data frame": (
        table(
            ["  ", "step", "loss", "val_loss"],
            lambda t: (t, TENS[t], LOSSES[t], "NaN"),
            delimiter="  ",
            after="30 305 NaN 9.9\n",
        ),
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
        "data frame that was printed",
    ),
    "tabs": (
        table(["Step", "Training Loss", "Validation Loss"], lambda t: (TENS[t], LOSSES[t], "No log"), delimiter="\t"),
        {"step": "Step", "loss": "Training Loss"},
        TENS,
        "steps",
        "CSV file",
    ),
    "Markdown": (
        table(["| step ", " loss ", " lr |"], lambda t: (f"| {t}", LOSSES[t], "0.1 |"), delimiter=" | ").replace(
            "\n", "\n|---|:---:|---|\n", 1
        ),
        {"step": "step", "loss": "loss", "lr": "lr"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "decimal commas": (
        table(["step", "loss", "lr"], lambda t: (t, str(LOSSES[t]).replace(".", ","), "0,1"), delimiter=";"),
        {"step": "step", "loss": "loss", "lr": "lr"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "fastai": (
        table(
            ["epoch", "train_loss", "valid_loss", "accuracy", "time"],
            lambda t: (t, LOSSES[t], 9.9, 0.5, "00:10"),
            delimiter="     ",
        ),
        {"loss": "train_loss", "epoch": "epoch"},
        ZEROS,
        "epochs",
        "table separated by blanks",
    ),
    "names in a comment": (
        table([], lambda t: (f"{t}.0e+00", f"{LOSSES[t]:.18e}"), delimiter=" ", before="# step loss\n"),
        {"step": "step", "loss": "loss"},
        ZEROS,
        "steps",
        "table separated by blanks",
    ),
    "one column without a name": (
        table([], lambda t: (LOSSES[t],)),
        {"loss": "loss"},
        ZEROS,
        "rows",
        "numbers without names",
    ),
    "two columns without names": (
        table([], lambda t: (TENS[t], LOSSES[t]), delimiter="\t"),
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
        "numbers without names",
    ),
    "one column": (table(["loss"], lambda t: (LOSSES[t],)), {"loss": "loss"}, ZEROS, "rows", "CSV file"),
    "tensors": (
        table(
            ["step", "loss", "lr"],
            lambda t: (t, f"\"tensor({LOSSES[t]}, device='cuda:0', grad_fn=<MeanBackward0>)\"", "[0.1]"),
        ),
        {"step": "step", "loss": "loss", "lr": "lr"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "MLflow": (
        table([], lambda t: (1700000000000 + t, LOSSES[t], TENS[t]), delimiter=" "),
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
        "metric file of MLflow",
    ),
    "drawn": (
        table(
            ["│ step ", " loss │"], lambda t: (f"│ {t} ", f" {LOSSES[t]} │"), delimiter="│", before="┏━━━━┳━━━━┓\n"
        ).replace("loss │\n", "loss │\n┡━━━━╇━━━━┩\n"),
        {"step": "step", "loss": "loss"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "epochs of a total": (
        table(["Epoch", "Train Loss", "Val Loss"], lambda t: (f"{t + 1}/{COUNT}", LOSSES[t], 9.9)),
        {"loss": "Train Loss", "epoch": "Epoch"},
        ONE,
        "epochs",
        "CSV file",
    ),
    "validation rows": (
        table(["step", "phase", "loss"], lambda t: (t, "train", LOSSES[t]), after="30,val,9.9\n31,validation,9.9\n"),
        {"step": "step", "loss": "loss"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "names again after a restart": (
        table(["step", "loss"], lambda t: (t, LOSSES[t]), after=f"step,loss\n29,{LOSSES[29]}\n"),
        {"step": "step", "loss": "loss"},
        ZEROS,
        "steps",
        "CSV file",
    ),
    "words before the table": (
        table(["step", "loss"], lambda t: (t, LOSSES[t]), before="Experiment 1 of May, with batch size 32\n\n"),
        {"step": "step", "loss": "loss"},
        ZEROS,
        "steps",
        "CSV file",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_table_is_read(name, tmp_path):
    text, columns, steps, unit, form = EXAMPLES[name]
    path = tmp_path / "log.dat"
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    assert log.attrs["columns"] == {**log.attrs["columns"], **columns}
    assert log.step.values.tolist() == steps
    np.testing.assert_allclose(log.loss, LOSSES, rtol=1e-12)
    assert log.attrs["row_unit"] == unit
    assert log.attrs["form"] == form


PLAIN = table(["step", "loss", "lr"], lambda t: (TENS[t], LOSSES[t], 0.1))


@pytest.mark.parametrize(
    "write",
    [
        lambda text: gzip.compress(text.encode()),
        lambda text: bz2.compress(text.encode()),
        lambda text: lzma.compress(text.encode()),
        lambda text: gzip.compress(text[:100].encode()) + gzip.compress(text[100:].encode()),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.replace("step", "étape,step").replace("\n", "\n0,").encode("latin-1").rstrip(b"0,"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
        lambda text: text.replace("\n", ",\n").encode(),
    ],
)
def test_encodings_and_compression(write, tmp_path):
    path = tmp_path / "log.dat"
    path.write_bytes(write(PLAIN))
    log = simulate.read_log(path)
    assert log.step.values.tolist() == TENS
    assert log.loss.values.tolist() == LOSSES


def test_a_compressed_file_that_ends_too_early(tmp_path):
    long = "step,loss\n" + "".join(f"{t},{LOSSES[t % COUNT] + t}\n" for t in range(20_000))
    compressed = gzip.compress(long.encode())
    path = tmp_path / "log.csv.gz"
    path.write_bytes(compressed[: len(compressed) // 2])
    log = simulate.read_log(path)
    assert 1000 < log.sizes["step"] < 20_000
    assert "ends too early" in log.attrs["remarks"][0]


def test_the_last_line_may_be_incomplete(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(PLAIN.rpartition(",")[0].rpartition(",")[0], encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == TENS[:-1]
    assert any("last line is incomplete" in remark for remark in log.attrs["remarks"])


def test_a_few_lines_with_other_cells_are_skipped(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(PLAIN.replace("150,", "Warning, low, memory, here\n150,"), encoding="utf-8")
    log = simulate.read_log(path)
    assert log.loss.values.tolist() == LOSSES
    assert any("1 line was skipped" in remark for remark in log.attrs["remarks"])


def test_empty_cells_were_not_logged_and_nan_is_lost(tmp_path):
    path = tmp_path / "log.csv"
    cells = ["1.5", "", "None", "null", "-", "nan", "NaN", "inf", "-inf", "NA", "2.5"]
    path.write_text("step,loss,lr\n" + "".join(f"{t},{cell},0.1\n" for t, cell in enumerate(cells)), encoding="utf-8")
    nan, inf = math.nan, math.inf
    np.testing.assert_array_equal(simulate.read_log(path).loss, [1.5, nan, nan, nan, nan, inf, inf, inf, inf, nan, 2.5])


def test_a_long_table_has_the_same_cells(tmp_path):
    cells = ["1.5", "", "nan", "inf", "0.1", "1e-3"] * 500
    text = "step,loss,lr\n" + "".join(f"{t},{cell},0.1\n" for t, cell in enumerate(cells))
    (tmp_path / "long.csv").write_text(text, encoding="utf-8")
    (tmp_path / "quoted.csv").write_text(text.replace("\n0,", '\n"0",', 1), encoding="utf-8")
    long, quoted = (simulate.read_log(tmp_path / name) for name in ("long.csv", "quoted.csv"))
    np.testing.assert_array_equal(long.loss, quoted.loss)
    np.testing.assert_array_equal(long.loss[:6], [1.5, math.nan, math.inf, math.inf, 0.1, 1e-3])


class TestWeightsAndBiases:
    def test_several_runs_in_a_panel_are_listed(self, tmp_path):
        names = [
            '"Step"',
            *(f'"{run} - train/loss{end}"' for run in ("sun-1", "moon-2") for end in ("", "__MIN", "__MAX")),
        ]
        path = tmp_path / "panel.csv"
        path.write_text(table(names, lambda t: (f'"{t}"', LOSSES[t], 0, 9, 7.0, 0, 9)), encoding="utf-8")
        with pytest.raises(ValueError, match="got 2 runs: moon-2, sun-1"):
            simulate.read_log(path)
        log = simulate.read_log(path, names={"loss": "sun-1 - train/loss"})
        assert log.loss.values.tolist() == LOSSES

    def test_a_table_of_runs_is_refused(self, tmp_path):
        names = ['"Name"', '"State"', '"Created"', '"lr"', '"train/loss"']
        path = tmp_path / "runs.csv"
        path.write_text(table(names, lambda t: (f'"run{t}"', '"finished"', '"2026"', 0.1, LOSSES[t])), encoding="utf-8")
        with pytest.raises(ValueError, match=r"table of runs.*30 rows, one for each run"):
            simulate.read_log(path)


class TestNorm:
    """A column `norm` may be that of the weights or that of the gradient."""

    def test_alone_it_is_left_out(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text(table(["step", "loss", "lr", "norm"], lambda t: (t, LOSSES[t], 0.1, 3.0)), encoding="utf-8")
        log = simulate.read_log(path)
        assert not {"norm", "gradient_norm", "grad_norm"} & set(log.variables)
        (remark,) = log.attrs["remarks"]
        assert "--column norm=norm" in remark
        assert "--column gradient=norm" in remark
        assert simulate.read_log(path, names={"norm": "norm"}).norm.values.tolist() == [3.0] * COUNT
        gradient = simulate.read_log(path, names={"gradient": "norm"})
        assert "norm" not in gradient
        assert gradient.gradient_norm.attrs["column"] == "norm"
        assert simulate.read_log(path, names={"norm": ""}).attrs["remarks"] == []

    def test_beside_a_gradient_norm_it_is_of_the_weights(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text(table(["loss", "grad_norm", "norm"], lambda t: (LOSSES[t], 2.0, 3.0)), encoding="utf-8")
        log = simulate.read_log(path)
        assert log.norm.values.tolist() == [3.0] * COUNT
        assert log.gradient_norm.values.tolist() == [2.0] * COUNT
        assert log.grad_norm.values.tolist() == [6.0] * COUNT

    @pytest.mark.parametrize("name", ["params norm", "param_norm", "optim/total_param_norm", "model norm"])
    def test_the_norm_of_all_weights_is_another_one(self, name, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text(table(["step", "loss", name], lambda t: (t, LOSSES[t], 238.3)), encoding="utf-8")
        log = simulate.read_log(path)
        assert "norm" not in log
        assert log.all_weights_norm.values.tolist() == [238.3] * COUNT
        assert simulate.read_log(path, names={"norm": name}).norm.values.tolist() == [238.3] * COUNT


def test_losses_of_the_evaluation_are_not_taken(tmp_path):
    path = tmp_path / "log.csv"
    for name in ("val_loss", "test/loss", "eval_loss", "validation loss", "valid_loss", "dev_loss"):
        path.write_text(table(["step", name], lambda t: (t, 1.0)), encoding="utf-8")
        with pytest.raises(ValueError, match=f"loss or a norm of the weights, got .*{name}"):
            simulate.read_log(path)


def test_several_losses_are_a_question(tmp_path):
    path = tmp_path / "gan.csv"
    path.write_text(table(["step", "d_loss", "g_loss"], lambda t: (t, LOSSES[t], 1.0)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"one loss, got \['d_loss', 'g_loss'\]; choose one by `names`"):
        simulate.read_log(path)
    assert simulate.read_log(path, names={"loss": "d_loss"}).loss.values.tolist() == LOSSES


def test_three_columns_without_names_are_a_question(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text(table([], lambda t: (t, LOSSES[t], 0.1), delimiter=" "), encoding="utf-8")
    with pytest.raises(ValueError, match=r"\['column 1', 'column 2', 'column 3'\]; name one by `names`"):
        simulate.read_log(path)
    log = simulate.read_log(path, names={"step": "column 1", "loss": "column 2", "lr": "column 3"})
    assert log.loss.values.tolist() == LOSSES


NUMBERS = st.floats(-1e6, 1e6).map(lambda number: number or 0.0)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(data=st.data())
def test_numbers_survive_a_table(data, tmp_path_factory):
    count = data.draw(st.integers(2, 40))
    columns = {
        "step": data.draw(st.lists(st.integers(0, 10**9), min_size=count, max_size=count, unique=True).map(sorted)),
        "train/loss": data.draw(st.lists(NUMBERS, min_size=count, max_size=count)),
        "learning_rate": data.draw(st.lists(NUMBERS, min_size=count, max_size=count)),
        "grad_norm": data.draw(st.lists(NUMBERS, min_size=count, max_size=count)),
    }
    order = data.draw(st.permutations(list(columns)))
    delimiter = data.draw(st.sampled_from([",", ";", "\t", "|", " ", "   "]))
    comments = data.draw(st.sampled_from(["", "# a comment\n", "# seed: 3, lr: 0.1\n#\n", "\n"]))
    quote = data.draw(st.sampled_from(["", '"'] if delimiter in ",;\t" else [""]))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    lines = [[name.replace("/", "_") for name in order], *zip(*(columns[name] for name in order), strict=True)]
    text = comments + "".join(
        delimiter.join(f"{quote}{cell if isinstance(cell, str) else repr(cell)}{quote}" for cell in line) + end
        for line in lines
    )
    compress = data.draw(st.sampled_from([lambda content: content, gzip.compress, bz2.compress, lzma.compress]))
    path = tmp_path_factory.mktemp("table") / "log"
    path.write_bytes(compress(text.encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))))
    log = simulate.read_log(path)
    assert log.step.values.tolist() == columns["step"]
    for variable, name in {"loss": "train/loss", "lr": "learning_rate", "gradient_norm": "grad_norm"}.items():
        assert log[variable].values.tolist() == columns[name], variable
