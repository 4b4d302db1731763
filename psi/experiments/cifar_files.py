"""CIFAR-10 and CIFAR-100 from the files of their "python version", which are pickles.

A pickle names functions to call, so reading one that somebody has changed would run what they like. Here each of the few
names that these files contain stands for a function of ours, and nothing is imported or called beside them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...manifolds.errors import RetractError
from .data import Split

__all__ = ["cifar10", "cifar100"]


class _Layout(NamedTuple):
    """The files of a data set."""

    name: str
    folder: str
    archive: str
    train: Sequence[str]
    test: Sequence[str]
    images: tuple[int, int]
    """How many a training file and a test file hold."""
    labels: str
    """Key of the labels."""
    classes: int


_CIFAR10 = _Layout(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    [f"data_batch_{i}" for i in range(1, 6)],
    ["test_batch"],
    (10_000, 10_000),
    "labels",
    10,
)
_CIFAR100 = _Layout(
    "CIFAR-100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    ["train"],
    ["test"],
    (50_000, 10_000),
    "fine_labels",
    100,
)


def cifar10(folder: Path) -> Split:
    """CIFAR-10 from ``data_batch_1`` … ``data_batch_5`` and ``test_batch``, in `folder` or in
    ``folder/cifar-10-batches-py``.

    Images are uint8, (N, 3, 32, 32), labels int64, (N,): 50,000 to train and 10,000 to test.

    Raises `RetractError` naming the file that is missing, cut off, not what its name says, or that contains anything else
    than arrays of bytes, numbers and text; nothing of it is executed.
    """
    return _read(folder, _CIFAR10)


def cifar100(folder: Path) -> Split:
    """CIFAR-100 with its 100 fine labels, from ``train`` and ``test``, in `folder` or in ``folder/cifar-100-python``; as
    `cifar10` otherwise."""
    return _read(folder, _CIFAR100)


def _read(folder: Path, layout: _Layout) -> Split:
    own = folder / layout.folder
    folder = own if own.is_dir() else folder
    parts: list[Tensor] = []
    for files, count in zip((layout.train, layout.test), layout.images, strict=True):
        images, labels = zip(*(_batch(folder / file, count, layout) for file in files), strict=True)
        parts += [torch.from_numpy(np.concatenate(images)), torch.tensor(np.concatenate(labels))]
    return Split(*parts)


def _batch(path: Path, count: int, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    """Images, (count, 3, 32, 32), and labels, (count,), of one file."""
    if not path.is_file():
        raise RetractError(
            f"no file {path}: {layout.name} is read from {', '.join([*layout.train, *layout.test])} in that folder, or in its "
            f"folder {layout.folder}. They are in {layout.archive} from https://www.cs.toronto.edu/~kriz/cifar.html; unpack it"
        )
    content = _unpickle(path)
    content = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    images, labels = content.get("data"), content.get(layout.labels)
    if (
        not isinstance(images, _Array)
        or not isinstance(labels, list)
        or any(type(label) is not int for label in labels)
    ):
        raise RetractError(
            f"{path} is not a file of {layout.name}: it should hold arrays of bytes under 'data' and integers under "
            f"{layout.labels!r}, and has {', '.join(map(str, content)) or 'no keys'}"
        )
    if images.array.shape != (count, 3072) or len(labels) != count:
        raise RetractError(
            f"{path} holds images of shape {images.array.shape} and {len(labels)} labels, not {count} of 3 × 32 × 32"
        )
    if not 0 <= min(labels) <= max(labels) < layout.classes:
        raise RetractError(f"{path} has labels from {min(labels)} to {max(labels)}, outside 0 … {layout.classes - 1}")
    return images.array.reshape(count, 3, 32, 32), np.array(labels, dtype=np.int64)


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # Python 2 wrote the originals: their text comes as bytes.
            return _Restricted(file, encoding="bytes").load()
    except RetractError as error:
        raise RetractError(f"{path} {error}") from None
    except Exception as error:  # what a foreign file makes of the opcodes is anybody's guess
        raise RetractError(
            f"{path} is cut off, or is not a pickle ({type(error).__name__}: {error}); fetch it again"
        ) from error


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Array:
    """What the files call numpy.ndarray; bytes only."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype):
            raise RetractError("holds an array without a type")
        self.fill(content, shape, "F" if fortran else "C")

    def fill(self, content: Any, shape: Any, order: Any) -> _Array:
        """Take `content` as the array's memory."""
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order=order)
        return self


class _Dtype:
    """What the files call numpy.dtype; bytes only."""

    def __init__(self, name: Any, *_: Any) -> None:
        if _text(name) not in ("u1", "|u1"):
            raise RetractError(f"holds an array of {_text(name)!r}, not of bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which bytes do not have."""


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    """What the files call numpy's _frombuffer, in pickles of protocol 5."""
    if not isinstance(dtype, _Dtype):
        raise RetractError("holds an array without a type")
    return _Array().fill(content, shape, order)


def _encode(text: str, *_: Any) -> bytes:
    """What the files call _codecs.encode: bytes, where Python 3 wrote a pickle that Python 2 can read."""
    return text.encode("latin1")


# numpy moved from numpy.core to numpy._core in its version 2.
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Restricted(pickle.Unpickler):
    """Knows the names in `_NAMES`, refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """As in `pickle.Unpickler`."""
        found = _NAMES.get((module, name))
        if found is None:
            raise RetractError(
                f"asks for {module}.{name}, which no file of CIFAR contains; it was not executed. Do not use the file"
            )
        return found
