"""Image classification data through Hugging Face `datasets`, from the hub or from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from empirical.data.contract import Data

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


def from_hub(name: str) -> Data:
    """Load a data set by its short name or its id "owner/name".

    The package `datasets` caches downloads and obeys HF_HUB_OFFLINE.

    Raises
    ------
    ValueError : `datasets` is not installed, the hub cannot be reached, or the data are not labelled images.
    """
    path, configuration = HUB.get(name, (name, None))
    return _convert(name, _load(name, path, configuration))


def from_files(path: str) -> Data:
    """Load local images: a parquet file, a folder of parquet files, or one folder of images per class.

    Parameters
    ----------
    path : a parquet file; a folder whose parquet files have "train" or "test" in their names; or a folder with one
        folder of images per class, directly or below `train` and `test`.

    Raises
    ------
    ValueError : the path has no such files, or the images are not labelled or differ in size.
    """
    root = Path(path)
    if root.is_dir() and not list(root.glob("*.parquet")):
        return _convert(path, _load(path, "imagefolder", None, data_dir=str(root)))
    files = [root] if root.is_file() else sorted(root.glob("*.parquet"))
    if not files:
        raise ValueError(f"dataset must be a name, an id 'owner/name' or an existing file or folder, got {path!r}")
    parts = {part: [str(file) for file in files if part in file.name] for part in _FILES}
    if not parts["train"]:
        parts["train"] = [str(file) for file in files if str(file) not in parts["test"]]
    files_by_part = {part: names for part, names in parts.items() if names}
    return _convert(path, _load(path, "parquet", None, data_files=files_by_part))


def _load(name: str, path: str, configuration: str | None, **files: Any) -> Any:
    try:
        # slow to import
        import datasets
    except ImportError:
        raise ValueError(f"dataset {name!r} needs the package datasets: pip install 'bnwd[data]'") from None
    try:
        return datasets.load_dataset(path, configuration, **files)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"dataset {name!r} cannot be loaded ({type(error).__name__}: {reason}); load it once while online, "
            "which fills the Hugging Face cache, or pass the path of local files"
        ) from None


def _convert(name: str, parts: Any) -> Data:
    if "train" not in parts:
        raise ValueError(f"dataset {name!r} must have a split 'train', got {', '.join(parts)}")
    image, label = _columns(name, parts["train"].features)
    inputs, targets = _tensors(name, parts["train"], image, label)
    if "test" not in parts:
        return Data(inputs, targets)
    return Data(inputs, targets, *_tensors(name, parts["test"], image, label))


def _columns(name: str, features: Any) -> tuple[str, str]:
    """Names of the image column and the label column, found by their types."""
    import datasets

    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    preferred = [column for column in _LABELS if column in labels]
    if len(images) != 1 or not labels or (len(labels) > 1 and not preferred):
        raise ValueError(f"dataset {name!r} must have one column of images and one of labels, got {dict(features)}")
    return images[0], (preferred or labels)[0]


def _tensors(name: str, rows: Any, image: str, label: str) -> tuple[Tensor, Tensor]:
    images = [_pixels(picture) for picture in rows[image]]
    shapes = {pixels.shape for pixels in images}
    if len(shapes) != 1:
        raise ValueError(f"dataset {name!r} must have images of one size, got {sorted(shapes)}")
    # (height, width, colours) to (colours, height, width)
    inputs = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return inputs, torch.as_tensor(rows[label], dtype=torch.int64)


def _pixels(picture: Any) -> npt.NDArray[np.uint8]:
    """Bytes of an image, (height, width, colours), with one colour for grey images and three for others."""
    pixels = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"), dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
