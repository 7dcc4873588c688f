"""Event files of TensorBoard: both kinds of scalars, folders of one run, several runs, restarts."""

import math
import struct

import numpy as np
import pytest

import simulate

event_file_writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
from tensorboard.compat.proto.event_pb2 import Event  # noqa: E402
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata  # noqa: E402
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # noqa: E402

COUNT = 50
LOSSES = np.float32(np.linspace(2, 1, COUNT))


def simple(tag, number):
    return Summary.Value(tag=tag, simple_value=float(number))


def tensor(tag, number, *, content=False):
    value = TensorProto(dtype=1, tensor_content=np.float32(number).tobytes()) if content else TensorProto(dtype=1)
    if not content:
        value.float_val.append(float(number))
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    return Summary.Value(tag=tag, tensor=value, metadata=metadata)


def write(folder, values):
    """Write an event file; values are pairs of step and summary value."""
    writer = event_file_writer.EventFileWriter(str(folder))
    for step, value in values:
        writer.add_event(Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=[value])))
    writer.close()
    return folder


def series(tag, make=simple, numbers=LOSSES, **options):
    return [(step, make(tag, number, **options)) for step, number in enumerate(numbers)]


@pytest.mark.parametrize(("make", "options"), [(simple, {}), (tensor, {}), (tensor, {"content": True})])
def test_scalars_of_both_kinds(make, options, tmp_path):
    values = series("train/loss", make, **options) + series("train/learning_rate", make, [0.0] * COUNT, **options)
    values += [(step, Summary.Value(tag="weights", histo=HistogramProto(num=3))) for step in range(COUNT)]
    values += [(COUNT + 7, make("eval/loss", 9.9, **options))]
    log = simulate.read_log(write(tmp_path, values))
    assert log.step.values.tolist() == list(range(COUNT))
    np.testing.assert_array_equal(log.loss, LOSSES.astype(float))
    assert log.lr.values.tolist() == [0.0] * COUNT
    assert log.attrs["columns"] == {"step": "step", "loss": "train/loss", "lr": "train/learning_rate"}
    assert log.attrs["form"] == "event files of TensorBoard"
    # a file of any name is recognized by its content
    (file,) = tmp_path.iterdir()
    assert simulate.read_log(file.rename(tmp_path / "renamed")).sizes["step"] == COUNT


def test_nan_is_lost(tmp_path):
    log = simulate.read_log(write(tmp_path, series("loss", numbers=[1.0, math.nan, math.inf, 2.0])))
    np.testing.assert_array_equal(log.loss, [1, math.inf, math.inf, 2])


def test_a_file_that_is_still_being_written(tmp_path):
    (file,) = write(tmp_path, series("loss")).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    assert simulate.read_log(tmp_path).sizes["step"] == COUNT - 1
    file.write_bytes(content + struct.pack("<Q", 2**60))
    assert simulate.read_log(tmp_path).sizes["step"] == COUNT


class TestFolders:
    def test_training_and_validation_of_keras(self, tmp_path):
        write(tmp_path / "train", series("epoch_loss", tensor))
        write(tmp_path / "validation", series("epoch_loss", tensor, [9.9] * COUNT))
        log = simulate.read_log(tmp_path)
        np.testing.assert_array_equal(log.loss, LOSSES.astype(float))
        assert log.attrs["row_unit"] == "epochs"
        assert any("'train'" in remark for remark in log.attrs["remarks"])

    def test_lines_of_add_scalars(self, tmp_path):
        write(tmp_path, series("lr", numbers=[0.1] * COUNT))
        write(tmp_path / "loss_train", series("loss"))
        write(tmp_path / "loss_val", series("loss", numbers=[9.9] * COUNT))
        log = simulate.read_log(tmp_path)
        np.testing.assert_array_equal(log.loss, LOSSES.astype(float))
        assert log.loss.attrs["column"] == "loss/train"
        assert log.lr.attrs["column"] == "lr"

    def test_hyperparameters(self, tmp_path):
        write(tmp_path, series("train/loss"))
        write(tmp_path / "1795844239.82", [(0, simple("hparam/accuracy", 0.5))])
        log = simulate.read_log(tmp_path)
        np.testing.assert_array_equal(log.loss, LOSSES.astype(float))

    def test_several_runs_are_listed(self, tmp_path):
        for name in ("version_0", "version_1"):
            write(tmp_path / name, series("train_loss"))
        with pytest.raises(ValueError, match=r"got 2 with event files in .*: version_0, version_1. Choose one"):
            simulate.read_log(tmp_path)
        assert simulate.read_log(tmp_path / "version_1").sizes["step"] == COUNT

    def test_files_of_one_run_are_put_together(self, tmp_path):
        write(tmp_path, series("loss"))
        first = next(tmp_path.iterdir())
        first.rename(tmp_path / "events.out.tfevents.1.host")
        write(tmp_path, [(step, simple("loss", 5.0)) for step in range(40, 60)])
        log = simulate.read_log(tmp_path)
        assert log.step.values.tolist() == list(range(60))
        assert log.loss.values[-20:].tolist() == [5.0] * 20


def test_tags_over_samples_add_no_steps(tmp_path):
    samples = [(512 * step, simple("lm loss vs samples", 1.0)) for step in range(COUNT)]
    log = simulate.read_log(write(tmp_path, series("lm loss") + samples + series("grad-norm") + series("params-norm")))
    assert log.step.values.tolist() == list(range(COUNT))
    assert log.attrs["columns"]["all_weights_norm"] == "params-norm"
    assert log.attrs["columns"]["gradient"] == "grad-norm"


def test_without_scalars_of_a_training(tmp_path):
    write(tmp_path / "a", [(0, Summary.Value(tag="weights", histo=HistogramProto(num=3)))])
    with pytest.raises(ValueError, match="must have scalars"):
        simulate.read_log(tmp_path / "a")
    write(tmp_path / "b", series("eval/loss") + series("accuracy"))
    with pytest.raises(ValueError, match=r"a loss or a norm of the weights, got \['accuracy', 'eval/loss'"):
        simulate.read_log(tmp_path / "b")
