"""CIFAR-10 and CIFAR-100 from the files of their "python version", which are pickles.

A pickle names functions to call, so `pickle` would run whatever somebody has written into one. `pickles.read` calls nothing;
the arrays are made here, from what it has read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from retract.errors import RetractError
from retract.psi.data import Split, whole
from torch import Tensor

from .pickles import Call, Name, read, shown

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


CIFAR10 = _Layout(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    [f"data_batch_{i}" for i in range(1, 6)],
    ["test_batch"],
    (10_000, 10_000),
    "labels",
    10,
)
CIFAR100 = _Layout(
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

    Raises `RetractError` naming the file that is missing, too large, cut off or not what its name says, or that asks for
    anything but arrays of bytes; nothing of it is executed.
    """
    return _read(folder, CIFAR10)


def cifar100(folder: Path) -> Split:
    """CIFAR-100 with its 100 fine labels, from ``train`` and ``test``, in `folder` or in ``folder/cifar-100-python``; as
    `cifar10` otherwise."""
    return _read(folder, CIFAR100)


def _read(folder: Path, layout: _Layout) -> Split:
    own = folder / layout.folder
    folder = own if own.is_dir() else folder
    parts: list[Tensor] = []
    for files, count in zip((layout.train, layout.test), layout.images, strict=True):
        images, labels = zip(*(read_batch(folder / file, count, layout) for file in files), strict=True)
        parts += [torch.from_numpy(np.concatenate(images)), torch.tensor(np.concatenate(labels))]
    return Split(*parts)


def read_batch(path: Path, count: int, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    """Images, (count, 3, 32, 32), and labels, (count,), of one file."""
    if not path.is_file():
        raise RetractError(
            f"no file {path}: {layout.name} is read from {', '.join([*layout.train, *layout.test])} in that folder, or in its "
            f"folder {layout.folder}. They are in {layout.archive} from https://www.cs.toronto.edu/~kriz/cifar.html; unpack it"
        )
    content = _unpickle(path, count, layout)
    content = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    labels, images = content.get(layout.labels), _array(content.get("data"), path)
    if images is None or not isinstance(labels, list) or any(type(label) is not int for label in labels):
        keys = ", ".join(shown(key) for key in list(content)[:8])
        raise RetractError(
            f"{path} is not a file of {layout.name}: it should hold arrays of bytes under 'data' and integers under "
            f"{layout.labels!r}, and has {keys or 'no keys'}. Unpack {layout.archive} again"
        )
    if images.shape != (count, 3072) or len(labels) != count:
        raise RetractError(
            f"{path} holds images of shape {images.shape} and {len(labels)} labels, not {count} of 3 × 32 × 32. Unpack "
            f"{layout.archive} again"
        )
    if not 0 <= min(labels) <= max(labels) < layout.classes:
        raise RetractError(
            f"{path} has labels from {min(labels)} to {max(labels)}, outside 0 … {layout.classes - 1}. Unpack {layout.archive} again"
        )
    return images.reshape(count, 3, 32, 32), np.array(labels, dtype=np.int64)


def _unpickle(path: Path, count: int, layout: _Layout) -> Any:
    # An image has 3,072 bytes, twice that where a pickle writes bytes as UTF-8, and a name; and a number or two.
    content = whole(path, (count + 64) * 8192, f"of {count:,} images of {layout.name}")
    try:
        return read(content, "CIFAR", _NAMES.__contains__, (count + 64) * 16)
    except RetractError as error:
        raise RetractError(f"{path} {error}") from error.__cause__


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _array(value: Any, path: Path) -> np.ndarray | None:
    """The array that `value` asks numpy to make, if that is what it asks for."""
    order: Any
    match value:
        case Call(
            Name(_, "_reconstruct"), state=(_, tuple(shape), Call(Name(_, "dtype"), (dtype, *_)), fortran, content)
        ):
            order = "F" if fortran else "C"
        case Call(Name(_, "_frombuffer"), (content, Call(Name(_, "dtype"), (dtype, *_)), tuple(shape), order, *_)):
            pass
        case _:
            return None
    if _text(dtype) not in ("u1", "|u1"):
        raise RetractError(f"{path} holds an array of {shown(repr(dtype))}, not of bytes")
    try:
        memory = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(memory, np.uint8).reshape(shape, order=order)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise RetractError(f"{path} holds an array that is none ({shown(str(error))}); fetch the file again") from error


_NAMES = {
    Name("numpy", "ndarray"),
    Name("numpy", "dtype"),
    Name("_codecs", "encode"),
    # numpy moved from numpy.core to numpy._core in its version 2.
    *(Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *(Name(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What these files ask for."""
