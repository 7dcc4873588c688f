"""Files and folders that are no logs: one line says what they are and what to do. Nothing is unpickled."""

import functools
import gzip
import io
import os
import pickle
import re
import socket
import sqlite3
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from typer.testing import CliRunner

import simulate
from empirical.cli.main import app

mpl.use("Agg")


class Dangerous:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def saved(save, *arguments, **options):
    file = io.BytesIO()
    save(file, *arguments, **options)
    return file.getvalue()


def database(folder):
    path = folder / "made.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table log (step integer, loss real)")
    connection.close()
    return path.read_bytes()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("log.csv"))
    return file.getvalue()


KINDS = {
    "pickle": (pickle.dumps(Dangerous()), "pickle.*never opened"),
    "old pickle": (pickle.dumps(Dangerous(), protocol=2), "pickle.*never opened"),
    "checkpoint": (zipped("archive/data.pkl", "archive/version"), "checkpoint of PyTorch"),
    "npz": (saved(np.savez, loss=np.ones(3)), "npz.*simulate.read_log"),
    "npy": (saved(np.save, np.ones(3)), "array of NumPy.*simulate.read_log"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel.*read_excel"),
    "zip": (zipped("log.csv"), "zip archive.*Unpack"),
    "broken zip": (b"PK\x03\x04rest", "damaged zip"),
    "tar": (tarred(), "tar archive"),
    "parquet": (b"PAR1\x15\x04", "Parquet.*read_parquet"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
    "wandb": (b":W&B\xe1\xbe\0", "Weights & Biases.*history"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04", "zstd"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0", "PNG image"),
    "JPEG": (b"\xff\xd8\xff\xe0\0", "JPEG image"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "HTML": (b"<!DOCTYPE html><html><body>loss: 3</body></html>", "HTML"),
    "safetensors": (b"\x40\0\0\0\0\0\0\0" + b'{"weight":{"dtype":"F32"}}', "safetensors"),
    "empty": (b"", "empty file"),
    "blank": (b" \n\n", "empty file"),
    "other": (b"\x01\x02\x03\0\0\0\xff", "binary file of an unknown kind"),
    "prose": (b"Dear reader,\nthis text has no numbers.\n", "without numbers after a name such as loss"),
    "compressed": (b"\x1f\x8bno gzip", "decompressed"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_named_in_one_line(kind, tmp_path):
    content, words = KINDS[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"path must be.*{words}") as error:
        simulate.read_log(path)
    assert "\n" not in str(error.value)


def test_a_database_is_named(tmp_path):
    path = tmp_path / "log.db"
    path.write_bytes(database(tmp_path))
    with pytest.raises(ValueError, match="SQLite database"):
        simulate.read_log(path)


def test_paths_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="path must exist"):
        simulate.read_log(tmp_path / "none")
    with pytest.raises(ValueError, match="path must be a file, a run folder or a folder with a log"):
        simulate.read_log(tmp_path)


def test_a_similar_name_is_proposed(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss\n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no such file or folder\. Is it '.*metrics\.csv'\?"):
        simulate.read_log(tmp_path / "metric.csv")
    with pytest.raises(ValueError, match="Check the path"):
        simulate.read_log(tmp_path / "events")


@pytest.mark.parametrize("lines", [2, 10_000])
def test_a_text_instead_of_a_path(lines):
    with pytest.raises(ValueError, match=r"path must exist.*Write the text of a log into a file first") as error:
        simulate.read_log("step 1 loss 2.5\n" * lines)
    assert len(str(error.value)) < 500


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_nothing(path):
    path.symlink_to("nothing")


def checkpoint(path, *, is_zip=True):
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=is_zip)


# what makes a file, and words about it: what it is, and what to do
STRANGE_FILES = {
    "missing": (lambda path: None, "no such file or folder. Check the path"),
    "folder": (lambda path: path.mkdir(), "neither a log such as metrics.csv.* Choose the file of the log"),
    "link": (link_to_nothing, "a link to a file that does not exist"),
    "PNG": (lambda path: plt.imsave(path, np.ones((2, 2)), format="png"), "a PNG image.*Export the numbers"),
    "checkpoint": (checkpoint, "a checkpoint of PyTorch.*Choose the log"),
    "old checkpoint": (functools.partial(checkpoint, is_zip=False), "a pickle of Python.*Load it in Python"),
    "empty": (lambda path: path.touch(), "an empty file.*Check that the training has written"),
    "pipe": (fifo, "a pipe that nothing writes to.*Write the log into a file"),
    "socket": (unix_socket, "a socket, not a file.*Choose the file"),
    "null": (lambda path: path.symlink_to("/dev/null"), "a device, not a file.*Choose the file"),
    # it never ends
    "zero": (lambda path: path.symlink_to("/dev/zero"), "a device, not a file.*Choose the file"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_the_command_says_what_a_strange_file_is(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = STRANGE_FILES[kind]
    make(Path("file"))
    result = CliRunner().invoke(app, ["diagnose", "file"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(f"bnwd: log must .*{words}.*\n", result.stderr)
    assert "'file'" in result.stderr


COMPRESSED = gzip.compress(("step,loss\n" + "".join(f"{t},{2 - t / 500}\n" for t in range(300))).encode())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_a_pipe_is_read_until_its_writer_ends(wait, tmp_path):
    fifo(tmp_path / "pipe")
    (tmp_path / "log.csv.gz").write_bytes(COMPRESSED)

    def write():
        with open(tmp_path / "pipe", "wb") as pipe:
            for start in range(0, len(COMPRESSED), 500):
                time.sleep(wait)
                pipe.write(COMPRESSED[start : start + 500])
                pipe.flush()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    from_pipe = CliRunner().invoke(app, ["diagnose", str(tmp_path / "pipe")])
    writer.join()
    from_file = CliRunner().invoke(app, ["diagnose", str(tmp_path / "log.csv.gz")])
    assert (from_pipe.exit_code, from_file.exit_code) == (0, 0)
    assert from_pipe.stdout == from_file.stdout
    assert from_file.stdout.startswith("CSV file: 300 rows, every step (0 to 299); loss from 'loss'")


class TestFolders:
    CSV = "step,loss\n" + "".join(f"{t},{2 - t / 50}\n" for t in range(50))

    @pytest.mark.parametrize("name", ["metrics.csv", "results.csv", "log.txt", "my_own.csv"])
    def test_a_folder_with_one_log(self, name, tmp_path):
        (tmp_path / name).write_text(self.CSV, encoding="utf-8")
        (tmp_path / "hparams.yaml").write_text("lr: 0.1\n", encoding="utf-8")
        assert simulate.read_log(tmp_path).sizes["step"] == 50

    def test_a_usual_name_counts_before_others(self, tmp_path):
        (tmp_path / "metrics.csv").write_text(self.CSV, encoding="utf-8")
        (tmp_path / "notes.txt").write_text("loss: 3\n", encoding="utf-8")
        log = simulate.read_log(tmp_path)
        assert log.sizes["step"] == 50
        assert log.attrs["remarks"][0] == "The log is metrics.csv."

    def test_several_logs_are_listed(self, tmp_path):
        for name in ("a.csv", "b.csv"):
            (tmp_path / name).write_text(self.CSV, encoding="utf-8")
        with pytest.raises(ValueError, match=r"2 files: a.csv, b.csv. Choose one"):
            simulate.read_log(tmp_path)

    def test_the_newest_checkpoint_of_hugging_face(self, tmp_path):
        (tmp_path / "config.json").write_text("{}", encoding="utf-8")
        for step in (50, 400, 1000):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            history = ", ".join(f'{{"step": {t}, "loss": 2.0}}' for t in range(50, step + 1, 50))
            (folder / "trainer_state.json").write_text(f'{{"log_history": [{history}]}}', encoding="utf-8")
        assert simulate.read_log(tmp_path).step.values[-1] == 1000
