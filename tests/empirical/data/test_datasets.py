"""Data sets from files and from the hub, subsets, images as bytes, augmentation, and training with them."""

import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import pad

from empirical import RunConfig, train
from empirical.config import EMBEDDED_DATASETS, HUB_DATASETS
from empirical.data import Data, augment, load_data, loading, user_data
from empirical.data.batches import crop
from empirical.runs.preparation import prepare

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
CLASSES = np.arange(60) % 4


def rows(part, grey=False, label="label"):
    images = [Image.fromarray(pixels[..., 0] if grey else pixels) for pixels in PIXELS[part]]
    features = datasets.Features({"img": datasets.Image(), label: datasets.ClassLabel(num_classes=4)})
    return datasets.Dataset.from_dict({"img": images, label: CLASSES[part].tolist()}, features=features)


TRAIN, TEST = slice(0, 40), slice(40, 60)


def check_images(data, grey=False):
    expected = PIXELS[..., :1] if grey else PIXELS
    assert data.inputs.dtype == data.test_inputs.dtype == torch.uint8
    np.testing.assert_array_equal(data.inputs, expected[TRAIN].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test_inputs, expected[TEST].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.targets, CLASSES[TRAIN])
    np.testing.assert_array_equal(data.test_targets, CLASSES[TEST])
    training = expected[TRAIN].astype(np.float64)
    np.testing.assert_allclose(data.mean.flatten(), training.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.scale.flatten(), training.std((0, 1, 2)), rtol=1e-12)
    prepared = data.network_inputs(data.inputs)
    np.testing.assert_allclose(prepared.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(prepared.var((0, 2, 3), correction=0), 1, rtol=1e-12)


def test_names_equal_those_in_the_configuration():
    assert tuple(loading.EMBEDDED) == EMBEDDED_DATASETS
    assert tuple(loading.HUB) == HUB_DATASETS


@pytest.mark.parametrize("grey", [False, True])
def test_parquet_files(tmp_path, grey):
    rows(TRAIN, grey).to_parquet(tmp_path / "train-00000.parquet")
    rows(TEST, grey).to_parquet(tmp_path / "test-00000.parquet")
    check_images(load_data(str(tmp_path), torch.float64, CPU), grey)
    alone = load_data(str(tmp_path / "train-00000.parquet"), torch.float64, CPU)
    np.testing.assert_array_equal(alone.targets, CLASSES[TRAIN])
    assert alone.test_inputs is None


def test_a_folder_of_images(tmp_path):
    for part, name in ((TRAIN, "train"), (TEST, "test")):
        for number, (pixels, label) in enumerate(zip(PIXELS[part], CLASSES[part], strict=True)):
            folder = tmp_path / name / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    data = load_data(str(tmp_path), torch.float64, CPU)
    # files come class by class
    order = np.argsort(CLASSES[TRAIN], kind="stable")
    np.testing.assert_array_equal(data.targets, CLASSES[TRAIN][order])
    np.testing.assert_array_equal(data.inputs, PIXELS[TRAIN][order].transpose(0, 3, 1, 2))
    assert len(data.test_inputs) == 20


@pytest.mark.parametrize(
    ("name", "asked", "label"),
    [
        ("cifar10", ("uoft-cs/cifar10", None), "label"),
        ("cifar100", ("uoft-cs/cifar100", None), "fine_label"),
        ("svhn", ("ufldl-stanford/svhn", "cropped_digits"), "label"),
        ("someone/something", ("someone/something", None), "kind"),
    ],
)
def test_the_hub_is_called_with_the_right_arguments(monkeypatch, name, asked, label):
    calls = []

    def load_dataset(*arguments):
        calls.append(arguments)
        parts = {"train": rows(TRAIN, label=label), "test": rows(TEST, label=label)}
        if label == "fine_label":
            coarse = datasets.ClassLabel(num_classes=2)
            parts = {name: part.add_column("coarse_label", [0] * len(part)) for name, part in parts.items()}
            parts = {name: part.cast_column("coarse_label", coarse) for name, part in parts.items()}
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check_images(load_data(name, torch.float64, CPU))
    assert calls == [asked]


def test_a_failed_download_raises_with_one_line(monkeypatch, tmp_path):
    def unreachable(*_):
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"'cifar10'.*ConnectionError: no route\)"):
        train(RunConfig(lr=0.1, wd=0.1, dataset="cifar10"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"dataset.*'cifar11'"):
        RunConfig(lr=0.1, wd=0.1, dataset="cifar11")


def test_tables_without_labelled_images_raise(monkeypatch):
    table = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1.0], "label": [0]})})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: table)
    with pytest.raises(ValueError, match=r"'someone/something'.*one column of images"):
        load_data("someone/something", torch.float32, CPU)
    sizes = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    images = [Image.fromarray(PIXELS[0]), Image.fromarray(PIXELS[1][:16])]
    mixed = datasets.Dataset.from_dict({"img": images, "label": [0, 1]}, features=sizes)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": mixed}))
    with pytest.raises(ValueError, match=r"'someone/something'.*images of one size"):
        load_data("someone/something", torch.float32, CPU)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    np.testing.assert_array_equal(loading._read_digits()[0], images)
    np.testing.assert_array_equal(loading._read_digits()[1], classes)


def test_embedded_sets():
    mnist = load_data("mnist5k", torch.float32, CPU)
    assert tuple(mnist.inputs.shape) == (4000, 1, 28, 28)
    assert len(mnist.test_inputs) == 1000
    assert mnist.targets.bincount().tolist() == [500 - n for n in mnist.test_targets.bincount().tolist()]
    gaussian = load_data("gaussian", torch.float64, CPU)
    centres = torch.stack([gaussian.inputs[gaussian.targets == c].mean(0).flatten() for c in range(10)])
    # norm 4, and the noise of a mean of 100 samples in 64 dimensions
    torch.testing.assert_close(centres.norm(dim=1), torch.full((10,), 4.08, dtype=torch.float64), rtol=0.08, atol=0)
    labels, digits = load_data("random_labels", torch.float64, CPU), load_data("digits", torch.float64, CPU)
    assert (labels.targets == digits.targets).double().mean() < 0.15
    assert torch.equal(labels.inputs, digits.inputs)
    assert torch.equal(labels.test_inputs, digits.test_inputs)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    samples=st.one_of(st.none(), st.integers(20, 1437)),
    validation=st.sampled_from([0.0, 0.1, 0.5]),
    label_noise=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_subsets_of_a_data_set(samples, validation, label_noise, seed):
    choice = {"samples": samples, "validation": validation, "label_noise": label_noise, "seed": seed}
    whole, data = load_data("digits", torch.float64, CPU), load_data("digits", torch.float64, CPU, **choice)
    again = load_data("digits", torch.float64, CPU, **choice)
    assert torch.equal(data.inputs, again.inputs)
    assert torch.equal(data.targets, again.targets)
    assert torch.equal(data.test_inputs, whole.test_inputs)
    kept = samples or 1437
    apart = round(validation * kept)
    assert data.size == kept - apart
    # all images differ, so an image identifies its true label and its place in one of the parts
    truth = {image.numpy().tobytes(): int(label) for image, label in zip(whole.inputs, whole.targets, strict=True)}
    assert len(truth) == 1437
    parts = [image.numpy().tobytes() for image in data.inputs]
    if apart:
        assert len(data.validation_inputs) == apart
        parts += [image.numpy().tobytes() for image in data.validation_inputs]
        assert [truth[image] for image in parts[data.size :]] == data.validation_targets.tolist()
    assert len(set(parts)) == kept
    true = torch.tensor([truth[image] for image in parts[: data.size]])
    assert int((true != data.targets).sum()) == round(label_noise * data.size)
    if samples:
        counts = np.bincount([truth[image] for image in parts], minlength=10)
        available = whole.targets.bincount().numpy()
        # as even as the classes allow
        assert (counts >= np.minimum(available, kept // 10)).all()


def test_classes_are_renamed():
    data, whole = load_data("digits", torch.float64, CPU, classes=(7, 2)), load_data("digits", torch.float64, CPU)
    torch.testing.assert_close(data.inputs[data.targets == 0], whole.inputs[whole.targets == 7])
    assert data.test_targets.unique().tolist() == [0, 1]
    for bad, message in (
        ((7, 11), r"classes.*11"),
        ((7,), r"classes.*7"),
    ):
        with pytest.raises(ValueError, match=message):
            load_data("digits", torch.float64, CPU, classes=bad)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 4), st.sampled_from([torch.uint8, torch.float32]), st.integers(0, 1000))
def test_crops_equal_those_of_a_loop(padding, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (5, 2, 6, 7), generator=generator).to(dtype)
    offsets = torch.randint(0, 2 * padding + 1, (2, 5), generator=generator)
    flips = torch.randint(0, 2, (5,), generator=generator).bool()
    before = images.clone()
    crops = crop(images, padding, offsets, flips)
    for n in range(5):
        top, left = offsets[0, n], offsets[1, n]
        one = pad(images[n], (padding,) * 4)[:, top : top + 6, left : left + 7]
        assert torch.equal(crops[n], one.flip(2) if flips[n] else one)
    assert torch.equal(images, before)
    assert crops.dtype == dtype


def test_offsets_and_flips_are_uniform():
    torch.manual_seed(0)
    images = torch.zeros(4000, 1, 5, 5)
    images[:, :, 2, 1] = 1
    augmented = augment(images, 1)
    places = augmented.flatten(1).argmax(1)
    # three rows, three columns, with and without a flip: 18 equally probable ways to 15 places
    counts = torch.bincount(places, minlength=25).view(5, 5)
    assert counts.sum() == 4000
    expected = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]) / 6 * 4000 / 3
    assert ((counts[1:4] - expected).abs() < 5 * expected.sqrt()).all()


BYTES = (torch.as_tensor(PIXELS).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(CLASSES))
CONFIG = RunConfig(lr=0.1, wd=0.01, model="convnet", width=4, steps=30, batch_size=16, evaluate_every=10)


@pytest.mark.parametrize("engine", ["eager", "replicas"])
def test_bytes_train_like_the_normalized_numbers(engine):
    config = dataclasses.replace(CONFIG, engine=engine, dtype="float64")
    byte_data = user_data(BYTES, torch.float64, CPU)
    as_numbers = train(config, data=(byte_data.network_inputs(byte_data.inputs), byte_data.targets))
    as_bytes = train(config, data=BYTES)
    np.testing.assert_allclose(as_bytes.loss, as_numbers.loss, rtol=1e-9)
    np.testing.assert_allclose(as_bytes.train_loss, as_numbers.train_loss, rtol=1e-9)
    assert isinstance(byte_data, Data)


def test_small_images_become_numbers_for_the_fast_engines():
    config = RunConfig(lr=0.1, wd=0.01, dataset="mnist5k", samples=200, steps=3)
    as_numbers, as_bytes = prepare(config), prepare(config, max_bytes_as_numbers=0)
    assert (as_numbers.config.engine, as_bytes.config.engine) == ("kernel", "replicas")
    assert as_bytes.data.inputs.dtype == torch.uint8
    batch = torch.arange(16)
    torch.testing.assert_close(as_bytes.problem.samples(batch), as_numbers.problem.samples(batch))
    assert train(config).attrs["config"] == json.dumps(as_numbers.config.to_dict())


@pytest.mark.parametrize("engine", ["eager", "replicas"])
def test_augmentation_is_part_of_the_run(tmp_path, engine):
    config = dataclasses.replace(CONFIG, dataset="mnist5k", samples=100, augmentation=2, engine=engine, model="mlp")
    whole = train(config)
    assert not np.allclose(whole.loss, train(dataclasses.replace(config, augmentation=None)).loss)
    # the random state is part of the checkpoint
    train(dataclasses.replace(config, steps=13), tmp_path / "run")
    xr.testing.assert_identical(train(config, tmp_path / "run"), whole)
    # evaluations use images without augmentation
    assert whole.train_loss[0] == train(dataclasses.replace(config, steps=0)).train_loss[0]


def test_validation_is_evaluated(tmp_path):
    config = dataclasses.replace(CONFIG, validation=0.2, label_noise=0.1, dataset="digits", classes=(1, 2, 3))
    run = train(config, tmp_path / "run")
    assert np.isfinite(run.validation_loss).all()
    assert run.validation_error.dims == ("eval_step",)
    assert RunConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())["config"]).classes == (
        1,
        2,
        3,
    )
    assert "validation_loss" not in train(dataclasses.replace(config, validation=0.0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"samples": 1}, r"samples.*1"),
        ({"validation": 1.0}, r"validation.*1"),
        ({"label_noise": 1.5}, r"label_noise.*1\.5"),
        ({"classes": (1, 1)}, r"classes.*1"),
        ({"augmentation": -1}, r"augmentation.*-1"),
        ({"dataset_seed": -1}, r"dataset_seed.*-1"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **bad)
