"""JSON documents, JSON lines and dicts that a training printed: losses as written, nothing of the evaluation."""

import json
import math

import numpy as np
import pytest

import simulate
from tests.simulate.logs.examples import COUNT, GRADIENTS, LOSSES, ONE, TENS

HISTORY = [
    {"loss": LOSSES[t], "grad_norm": GRADIENTS[t], "learning_rate": 5e-5, "epoch": TENS[t] / 500, "step": TENS[t]}
    for t in range(COUNT)
]
EVALUATION = {"eval_loss": 9.9, "eval_runtime": 3.2, "epoch": 0.6, "step": 300}
SUMMARY = {"train_loss": 8.8, "train_runtime": 99.0, "total_flos": 1e15, "epoch": 0.6, "step": 300}
STATE = {"best_metric": None, "global_step": 300, "log_history": [*HISTORY, EVALUATION, SUMMARY], "epoch": 0.6}


def rows(make, every=None):
    """JSON lines: one for each step, and another one after each tenth."""
    texts = []
    for t in range(COUNT):
        texts.append(json.dumps(make(t)))
        if every and t % 10 == 9:
            texts.append(json.dumps(every(t)))
    return "\n".join(texts) + "\n"


EXAMPLES = {
    "trainer state": (
        json.dumps(STATE, indent=2),
        "Hugging Face trainer state",
        {"step": "step", "loss": "loss", "lr": "learning_rate", "gradient": "grad_norm", "epoch": "epoch"},
        TENS,
        "steps",
    ),
    "log history": (
        json.dumps(STATE["log_history"]),
        "Hugging Face log history",
        {"step": "step", "loss": "loss", "lr": "learning_rate"},
        TENS,
        "steps",
    ),
    "printed dicts": (
        "Training starts with {config}\n"
        + "".join(
            f"\r 1%|  | {t}/3000 [00:01<00:10]\n"
            f"{{'loss': {LOSSES[t]}, 'grad_norm': np.float64({GRADIENTS[t]}), "
            f"'learning_rate': 5e-05, 'epoch': {t / 50}}}\n"
            for t in range(COUNT)
        )
        + "{'eval_loss': 9.9, 'epoch': 0.6}\n{'train_runtime': 99.0, 'train_loss': 8.8, 'epoch': 0.6}\n",
        "output of the Hugging Face trainer",
        {"loss": "loss", "lr": "learning_rate", "gradient": "grad_norm", "epoch": "epoch"},
        list(range(COUNT)),
        "rows",
    ),
    "printed dicts of texts": (
        "".join(
            f"{{'loss': '{LOSSES[t]}', 'grad_norm': '1.2', 'learning_rate': '5e-05', 'epoch': '{t / 50}'}}\n"
            for t in range(COUNT)
        ),
        "output of the Hugging Face trainer",
        {"loss": "loss", "lr": "learning_rate", "gradient": "grad_norm", "epoch": "epoch"},
        list(range(COUNT)),
        "rows",
    ),
    "MMCV": (
        '{"env_info": "x", "seed": 0}\n'
        + rows(
            lambda t: (
                {"mode": "train", "epoch": t // 10 + 1, "iter": t % 10 + 1, "lr": 0.01, "loss_cls": 7.0}
                | {"loss": LOSSES[t], "grad_norm": GRADIENTS[t]}
            ),
            lambda t: {"mode": "val", "epoch": t // 10 + 1, "iter": 20, "lr": 0.01, "bbox_mAP": 0.3, "loss": 9.9},
        ),
        "MMCV log",
        {"step": "iter", "loss": "loss", "lr": "lr", "gradient": "grad_norm"},
        ONE,
        "steps",
    ),
    "MMEngine": (
        rows(
            lambda t: (
                {"base_lr": 0.1, "lr": 0.1, "data_time": 0.01, "loss": LOSSES[t], "time": 0.3, "epoch": 1}
                | {"iter": TENS[t], "memory": 1, "step": TENS[t]}
            ),
            lambda t: {"coco/bbox_mAP": 0.3, "data_time": 0.1, "time": 0.2, "step": t // 10 + 1},
        ),
        "MMEngine log",
        {"step": "step", "loss": "loss", "lr": "lr"},
        TENS,
        "steps",
    ),
    "detectron2": (
        rows(
            lambda t: {
                "data_time": 0.005,
                "iteration": TENS[t] - 1,
                "loss_cls": 7.0,
                "lr": 0.01,
                "total_loss": LOSSES[t],
            },
            lambda t: {"bbox/AP": 30.0, "iteration": TENS[t] - 1},
        ),
        "detectron2 metrics",
        {"step": "iteration", "loss": "total_loss", "lr": "lr"},
        [step - 1 for step in TENS],
        "steps",
    ),
    "DeiT": (
        rows(lambda t: {"train_lr": 1e-3, "train_loss": LOSSES[t], "test_loss": 9.9, "epoch": t, "n_parameters": 5}),
        "DeiT log",
        {"loss": "train_loss", "lr": "train_lr", "epoch": "epoch"},
        list(range(COUNT)),
        "epochs",
    ),
    "Weights & Biases": (
        rows(
            lambda t: {
                "_step": TENS[t],
                "_runtime": 1.0,
                "_timestamp": 1.7e9,
                "train/loss": LOSSES[t],
                "hist": {"bins": [1]},
            },
            lambda t: {"_step": TENS[t], "_runtime": 1.0, "_timestamp": 1.7e9, "val/loss": 9.9},
        ),
        "Weights & Biases history",
        {"step": "_step", "loss": "train/loss"},
        TENS,
        "steps",
    ),
    "LLaMA-Factory": (
        rows(
            lambda t: {"current_steps": TENS[t], "total_steps": 1000, "loss": LOSSES[t], "lr": 5e-5, "percentage": 1.0}
        ),
        "LLaMA-Factory log",
        {"step": "current_steps", "loss": "loss", "lr": "lr"},
        TENS,
        "steps",
    ),
    "Keras": (
        json.dumps({"loss": LOSSES, "val_loss": [9.9] * COUNT, "accuracy": [0.5] * COUNT, "lr": [0.01] * COUNT}),
        "Keras history",
        {"loss": "loss", "lr": "lr"},
        list(range(COUNT)),
        "epochs",
    ),
    "data frame": (
        json.dumps(
            {"loss": {str(t): LOSSES[t] for t in range(COUNT)}, "step": {str(t): TENS[t] for t in range(COUNT)}}
        ),
        "dict of lists in JSON",
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
    ),
    "data frame, split": (
        json.dumps(
            {
                "columns": ["step", "loss"],
                "index": list(range(COUNT)),
                "data": [[TENS[t], LOSSES[t]] for t in range(COUNT)],
            }
        ),
        "data frame in JSON",
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
    ),
    "TensorBoard": (
        json.dumps([[1.7e9 + t, TENS[t], LOSSES[t]] for t in range(COUNT)]),
        "TensorBoard download",
        {"step": "Step", "loss": "Value"},
        TENS,
        "steps",
    ),
    "inner dicts": (
        json.dumps(
            {"config": {"lr": 0.1}, "train": {"loss": LOSSES, "step": TENS}, "val": {"loss": [9.9], "step": [3]}}
        ),
        "dict of lists in JSON",
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
    ),
    "dicts after words": (
        "".join(
            f"INFO train.py:12 step {TENS[t]}: {{'loss': tensor({LOSSES[t]}), 'lr': [0.1]}}\n" for t in range(COUNT)
        ),
        "dicts of Python in lines",
        {"step": "step", "loss": "loss", "lr": "lr"},
        TENS,
        "steps",
    ),
    "dicts without line ends": (
        "".join(json.dumps({"step": TENS[t], "loss": LOSSES[t]}) for t in range(COUNT)),
        "JSON lines",
        {"step": "step", "loss": "loss"},
        TENS,
        "steps",
    ),
    "DLLogger": (
        "".join(
            f'DLLL {{"timestamp": "1", "type": "LOG", "step": [0, {TENS[t]}], "data": {{"loss": {LOSSES[t]}}}}}\n'
            for t in range(COUNT)
        ),
        "JSON lines",
        {"step": "iteration", "loss": "data/loss"},
        TENS,
        "steps",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_is_read(name, tmp_path):
    text, form, columns, steps, unit = EXAMPLES[name]
    path = tmp_path / "log.dat"
    path.write_text(text, encoding="utf-8")
    log = simulate.read_log(path)
    assert log.attrs["columns"] == {**log.attrs["columns"], **columns}
    assert log.step.values.tolist() == steps
    np.testing.assert_allclose(log.loss, LOSSES, rtol=1e-12)
    assert log.attrs["form"] == form
    assert log.attrs["row_unit"] == unit


def test_epochs_beside_steps_give_the_length_of_an_epoch(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps(STATE), encoding="utf-8")
    log = simulate.read_log(path)
    assert log.attrs["epoch_length"] == 500
    np.testing.assert_allclose(log.epoch, [step / 500 for step in TENS])


def test_nan_is_lost_and_null_was_not_logged(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"step": 0, "loss": 1.5, "lr": null}\n{"step": 1, "loss": NaN, "lr": 0.1}\n'
        '{"step": 2, "loss": null, "lr": 0.1}\n'
        '{"step": 3, "loss": "nan"}\n{"step": 4, "loss": -Infinity}\n{"step": 5, "loss": 0}\n',
        encoding="utf-8",
    )
    log = simulate.read_log(path)
    np.testing.assert_array_equal(log.loss, [1.5, math.inf, math.nan, math.inf, math.inf, 0])
    path.write_text(
        "".join(f"{{'loss': {value}, 'step': {t}}}\n" for t, value in enumerate(["2.5", "nan", "None", "inf"]))
    )
    np.testing.assert_array_equal(simulate.read_log(path).loss, [2.5, math.inf, math.inf])


def test_files_that_end_in_the_middle(tmp_path):
    whole = json.dumps(STATE, indent=2)
    path = tmp_path / "trainer_state.json"
    path.write_text(whole[: whole.index('"step": 200') + 3], encoding="utf-8")
    log = simulate.read_log(path)
    assert log.step.values.tolist() == TENS[:19]
    assert log.attrs["form"] == "Hugging Face trainer state"
    assert any("ends in the middle" in remark for remark in log.attrs["remarks"])
    path = tmp_path / "log.jsonl"
    path.write_text(rows(lambda t: {"step": t, "loss": LOSSES[t]})[:-9], encoding="utf-8")
    log = simulate.read_log(path)
    assert log.sizes["step"] == COUNT - 1
    assert any("last line is incomplete" in remark for remark in log.attrs["remarks"])


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"cells": [], "nbformat": 4}, "notebook"),
        ({"lr": 0.1, "layers": 3}, "without rows"),
        ({"eval": [{"eval_loss": 1.0}]}, "without rows"),
        ([], "without rows"),
        ([1, 2, 3], "without rows"),
    ],
)
def test_other_json_is_refused_in_one_line(document, word, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=word) as error:
        simulate.read_log(path)
    assert "\n" not in str(error.value)


def test_losses_of_the_evaluation_are_not_taken(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(rows(lambda t: {"step": t, "eval_loss": 1.0, "val/loss": 2.0, "test_loss": 3.0}), encoding="utf-8")
    with pytest.raises(ValueError, match="loss"):
        simulate.read_log(path)
