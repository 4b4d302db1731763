"""Readers of data sets in their standard layouts."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ...manifolds.errors import RetractError

__all__ = ["Split", "digits", "mnist"]

_MNIST = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
}
# scikit-learn's digits come without a split; this many of the 1,797 train.
_DIGITS_TRAIN = 1_500


class Split(NamedTuple):
    """Images and integer labels, for training and for testing; each reader says what its images are."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: torch.device) -> Split:
        """The same on `device`."""
        return Split(*(t.to(device) for t in self))


def digits() -> Split:
    """The 8 × 8 digits that scikit-learn ships: 1,500 to train and 297 to test, by a fixed shuffle. Images are float32 rows
    in [0, 1], (N, 64)."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = torch.from_numpy(x[order] / 16.0).float()
    labels = torch.from_numpy(y[order]).long()
    return Split(images[:_DIGITS_TRAIN], labels[:_DIGITS_TRAIN], images[_DIGITS_TRAIN:], labels[_DIGITS_TRAIN:])


def mnist(folder: Path) -> Split:
    """MNIST from its four gzipped idx files in `folder` or in ``folder/MNIST/raw``: float32 rows in [0, 1], (N, 784).

    Raises `RetractError` naming the file that is missing or is not what its name says.
    """
    raw = folder / "MNIST" / "raw"
    folder = raw if raw.is_dir() else folder
    parts = []
    for images, labels, count in _MNIST.values():
        x, y = _read_idx(folder / images, 3), _read_idx(folder / labels, 1)
        if x.shape != (count, 28, 28) or y.shape != (count,):
            raise RetractError(
                f"{folder / images} holds {x.shape} and its labels {y.shape}, not {count} images of 28 × 28"
            )
        parts += [torch.from_numpy(x.reshape(count, -1) / np.float32(255)), torch.from_numpy(y.astype(np.int64))]
    return Split(*parts)


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    if not path.is_file():
        raise RetractError(f"no file {path}: --data-dir is the folder with the four idx .gz files of MNIST")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise RetractError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    # Magic number: two zero bytes, type 8 (unsigned byte), number of dimensions; then each size, big-endian.
    if content[:4] != bytes([0, 0, 8, ndim]):
        raise RetractError(f"{path} is not an idx file of {ndim}-dimensional bytes (magic {content[:4].hex()})")
    header = 4 + 4 * ndim
    shape = tuple(np.frombuffer(content, ">u4", ndim, 4).astype(int))
    if len(content) != header + int(np.prod(shape)):
        raise RetractError(f"{path} is cut off: {len(content) - header} bytes for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
