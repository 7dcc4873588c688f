"""Image-classification data through Hugging Face `datasets`: from its hub, or from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from empirical.data.contract import Data

# short names: id and configuration on the hub
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
    """Load a data set by its short name or its id "owner/name"; caches and HF_HUB_OFFLINE are those of `datasets`.

    Raises
    ------
    ValueError : the package is not there, the hub cannot be reached, or the data set is none of labelled images.
    """
    path, configuration = HUB.get(name, (name, None))
    return _converted(name, _loaded(name, path, configuration))


def from_files(path: str) -> Data:
    """Load local images: a parquet file, a folder with parquet files, or folders of images by class.

    Parameters
    ----------
    path : a parquet file; a folder whose parquet files have "train" or "test" in their names; or a folder with an image
        folder for each class, or with these under `train` and `test`.

    Raises
    ------
    ValueError : nothing of the kind is there, or the images are not labelled or not of one size.
    """
    place = Path(path)
    if place.is_dir() and not list(place.glob("*.parquet")):
        return _converted(path, _loaded(path, "imagefolder", None, data_dir=str(place)))
    files = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    if not files:
        raise ValueError(f"dataset must be a name, an id 'owner/name' or an existing file or folder, got {path!r}")
    parts = {part: [str(file) for file in files if part in file.name] for part in _FILES}
    if not parts["train"]:
        parts["train"] = [str(file) for file in files if str(file) not in parts["test"]]
    given = {part: names for part, names in parts.items() if names}
    return _converted(path, _loaded(path, "parquet", None, data_files=given))


def _loaded(name: str, path: str, configuration: str | None, **files: Any) -> Any:
    try:
        # takes a second to import
        import datasets
    except ImportError:
        raise ValueError(f"dataset {name!r} needs the package datasets: pip install 'bnwd[data]'") from None
    try:
        return datasets.load_dataset(path, configuration, **files)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"dataset {name!r} cannot be loaded ({type(error).__name__}: {reason}); load it once with a connection, "
            "which fills the cache of Hugging Face, or give the path of local files"
        ) from None


def _converted(name: str, parts: Any) -> Data:
    if "train" not in parts:
        raise ValueError(f"dataset {name!r} must have a part 'train', got {', '.join(parts)}")
    image, label = _columns(name, parts["train"].features)
    inputs, targets = _tensors(name, parts["train"], image, label)
    if "test" not in parts:
        return Data(inputs, targets)
    return Data(inputs, targets, *_tensors(name, parts["test"], image, label))


def _columns(name: str, features: Any) -> tuple[str, str]:
    """Names of the columns of images and of labels, found by what they hold."""
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
    """Bytes of an image, (height, width, colours): one colour if it is grey, else three."""
    pixels = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"), dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
