"""Decoded images in the cache folder: read once, checked, shared by processes, and never a reason to fail."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from empirical.data import _cache, load_data, loading

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def write_parquet(path, pixels=PIXELS):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    columns = {"img": [Image.fromarray(image) for image in pixels], "label": LABELS[: len(pixels)].tolist()}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def write_images(path):
    for number, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        folder = path / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNWD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the data sets that were decoded."""
    names, convert = [], loading._convert

    def count(name, *rest):
        names.append(name)
        return convert(name, *rest)

    monkeypatch.setattr(loading, "_convert", count)
    return names


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    write_parquet(tmp_path / "source" / "train.parquet")
    write_parquet(tmp_path / "source" / "test.parquet", PIXELS[:12])
    return tmp_path / "source"


def load(path):
    return load_data(str(path), torch.float64, CPU)


def assert_equal(one, other):
    for name in ("inputs", "targets", "test_inputs", "test_targets", "mean", "scale"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)), name


def entry_of(cache):
    (entry,) = cache.glob("*.npz")
    return entry


def test_the_second_load_equals_the_first_and_decodes_nothing(cache, decoded, source):
    first = load(source)
    np.testing.assert_array_equal(first.inputs, PIXELS.transpose(0, 3, 1, 2))
    assert_equal(load(source), first)
    assert decoded == [str(source)]
    # a subset is chosen from the cached images
    assert load_data(str(source), torch.float64, CPU, samples=8).size == 8
    assert len(decoded) == 1
    # what a caller does with the images does not change the entry
    first.inputs.zero_()
    assert load(source).inputs.any()


def test_folders_of_images_are_cached(cache, decoded, tmp_path):
    write_images(tmp_path / "images")
    first = load(tmp_path / "images")
    assert_equal(load(tmp_path / "images"), first)
    assert len(decoded) == 1
    Image.fromarray(PIXELS[0]).save(tmp_path / "images" / "class0" / "more.png")
    assert load(tmp_path / "images").size == 41


def test_data_of_the_hub_are_cached(cache, decoded, source, tmp_path, monkeypatch):
    original = datasets.load_dataset
    files = {"train": str(source / "train.parquet"), "test": str(source / "test.parquet")}
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *_: original("parquet", data_files=files, cache_dir=str(tmp_path / "hub")),
    )
    first = load("cifar10")
    assert_equal(load("cifar10"), first)
    assert decoded == ["cifar10"]


def test_reading_the_cache_does_not_import_datasets(cache, source):
    code = (
        "import sys, torch; from empirical.data import load_data; "
        f"print(load_data({str(source)!r}, torch.float32, torch.device('cpu')).size, 'datasets' in sys.modules)"
    )
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in "ab"]
    assert outputs == ["40 True\n", "40 False\n"]


def test_changed_files_are_decoded_again(cache, decoded, source):
    load(source)
    write_parquet(source / "train.parquet", 255 - PIXELS)
    np.testing.assert_array_equal(load(source).inputs, 255 - PIXELS.transpose(0, 3, 1, 2))
    # the same bytes at another time are another version too
    os.utime(source / "train.parquet", ns=(0, 0))
    load(source)
    assert len(decoded) == 3
    assert len(list(cache.glob("*.npz"))) == 1


def test_a_damaged_byte_never_changes_the_data(cache, source):
    first = load(source)
    entry = entry_of(cache)
    content = entry.read_bytes()
    # half of them in the headers and the directory of the archive
    numbers = np.random.default_rng(0)
    places = [*numbers.integers(len(content), size=20), *numbers.integers(-600, 300, size=20)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= numbers.integers(1, 256)
        entry.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_equal(load(source), first)
        assert len(caught) == 1
        assert "are damaged" in str(caught[0].message)


def test_a_damaged_image_or_a_cut_entry_is_decoded_again_with_a_warning(cache, decoded, source):
    first = load(source)
    entry = entry_of(cache)
    content = entry.read_bytes()
    place = content.index(first.inputs.numpy().tobytes()) + 1000
    for damaged in (
        content[:place] + b"damage" + content[place + 6 :],
        content[: len(content) // 2],
        b"",
        content + b"more",
        b"no entry",
    ):
        entry.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"cached images in .* are damaged .* decoded again"):
            assert_equal(load(source), first)
        assert entry_of(cache).stat().st_size == len(content)
    assert len(decoded) == 6


def test_processes_that_start_together_decode_once(cache, source, tmp_path):
    code = (
        "import sys, time, torch\n"
        "from empirical.data import load_data, loading\n"
        "convert = loading._convert\n"
        "def count(*arguments):\n"
        "    time.sleep(1)\n"
        "    print('decoded')\n"
        "    return convert(*arguments)\n"
        "loading._convert = count\n"
        f"print(load_data({str(source)!r}, torch.float32, torch.device('cpu')).inputs.sum().item())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in processes]
    total = str(int(PIXELS.sum(dtype=np.int64)))
    assert sorted(outputs, key=len) == [[total], [total], ["decoded", total]]


def test_without_a_writable_cache_images_are_decoded(decoded, source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for variables in (
        {"BNWD_CACHE": str(tmp_path / "file" / "cache")},
        {"BNWD_CACHE": "", "XDG_CACHE_HOME": "", "HOME": str(tmp_path / "file")},
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            assert load(source).size == 40
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert load(source).size == 40
    assert len(decoded) == 5


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_full_disk_only_prevents_the_cache(cache, source, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert load(source).size == 40
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    for name in ("BNWD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache._cache_folder() == tmp_path / ".cache" / "bnwd"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _cache._cache_folder() == tmp_path / "xdg" / "bnwd"
    monkeypatch.setenv("BNWD_CACHE", str(tmp_path / "own"))
    assert _cache._cache_folder() == tmp_path / "own"


def test_an_error_of_decoding_writes_nothing(cache, tmp_path):
    (tmp_path / "source").mkdir()
    datasets.Dataset.from_dict({"x": [1.0], "label": [0]}).to_parquet(tmp_path / "source" / "train.parquet")
    with pytest.raises(ValueError, match="one column of images"):
        load(tmp_path / "source")
    assert list(cache.glob("*.npz")) == []
