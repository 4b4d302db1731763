"""Readers of data sets in their standard layouts."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import RetractError

__all__ = ["Split", "digits", "mnist", "whole"]

_MNIST = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
}
_MOST = 16 + 60_000 * 28 * 28
"""Bytes of MNIST's largest file, unpacked; packed it has fewer."""
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
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = torch.from_numpy(x[order] / 16.0).float()
    labels = torch.from_numpy(y[order]).long()
    return Split(images[:_DIGITS_TRAIN], labels[:_DIGITS_TRAIN], images[_DIGITS_TRAIN:], labels[_DIGITS_TRAIN:])


def mnist(folder: Path) -> Split:
    """MNIST from its four gzipped idx files in `folder` or in ``folder/MNIST/raw``: float32 rows in [0, 1], (N, 784).

    Raises `RetractError` naming the file that is missing, too large, damaged, or is not what its name says.
    """
    raw = folder / "MNIST" / "raw"
    folder = raw if raw.is_dir() else folder
    parts = []
    for images, labels, count in _MNIST.values():
        x, y = read_idx(folder / images, 3), read_idx(folder / labels, 1)
        if x.shape != (count, 28, 28) or y.shape != (count,):
            raise RetractError(
                f"{folder / images} holds {x.shape} and its labels {y.shape}, not {count} images of 28 × 28; fetch both again"
            )
        if y.max() > 9:
            raise RetractError(f"{folder / labels} has labels up to {y.max()}, outside 0 … 9; fetch it again")
        parts += [torch.from_numpy(x.reshape(count, -1) / np.float32(255)), torch.from_numpy(y.astype(np.int64))]
    return Split(*parts)


def whole(path: Path, most: int, what: str) -> bytes:
    """The content of a file that should be one `what`. Raises `RetractError` for one of more than `most` bytes, before it is read,
    and for one that cannot be read."""
    try:
        size = path.stat().st_size
        if size <= most:
            return path.read_bytes()
    except OSError as error:
        raise RetractError(
            f"{path} cannot be read ({error.strerror}): see to it that it is a file you may read"
        ) from error
    raise RetractError(f"{path} has {size:,} bytes, more than a file {what} can have ({most:,}); fetch it again")


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The bytes of a gzipped idx file of MNIST, an array of `ndim` dimensions. Raises `RetractError` naming what is wrong."""
    if not path.is_file():
        raise RetractError(f"no file {path}: --data-dir is the folder with the four idx .gz files of MNIST")
    packed = whole(path, _MOST, "of MNIST")
    # Not the gzip module: this stops where there is more than MNIST has, however little of the file that takes.
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = stream.decompress(packed, _MOST + 1)
    except zlib.error as error:
        raise RetractError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    if not stream.eof or stream.unused_data:
        long = len(content) > _MOST or stream.unused_data
        told = f"it holds more than one stream of {_MOST:,} bytes" if long else "it is cut off"
        raise RetractError(f"{path} is not a whole gzip file ({told}); fetch it again")
    # Magic number: two zero bytes, type 8 (unsigned byte), number of dimensions; then each size, big-endian.
    header = 4 + 4 * ndim
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) < header:
        raise RetractError(
            f"{path} is not an idx file of {ndim}-dimensional bytes (it begins with {content[:header].hex()}); fetch it again"
        )
    shape = tuple(np.frombuffer(content, ">u4", ndim, 4).tolist())
    held, needed = len(content) - header, math.prod(shape)
    if held != needed:
        fault = "is cut off" if held < needed else "goes on after its end"
        raise RetractError(f"{path} {fault}: {held} bytes for shape {shape}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
