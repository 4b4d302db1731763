"""Checkpoints that are whole, whenever the process that writes them is killed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from retract.errors import RetractError

from . import pickles

__all__ = ["load", "save"]

_MOST = 3_000_000
"""Opcodes and values of a checkpoint, of which a tensor in it takes about thirty."""


def save(state: Any, path: Path) -> None:
    """Write `state` to `path`, which holds a whole checkpoint at every moment: the former one, or this one.

    It is written beside `path` under the name with ``.part`` added, flushed to the disk, and then takes the place of the
    former one in a single step. So one process at a time may write to `path`; a ``.part`` that a kill has left behind is
    written over by the next.

    Args:
        state: tensors, numbers, strings, and dicts, lists and tuples of them: ``state_dict()`` of models, optimizers and
            schedulers, states of random generators, the position in the data.
        path: a file in a folder that exists.

    Raises what `torch.save` and the file system raise; then `path` is what it was.
    """
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    if os.name == "posix":  # the name is on the disk when its folder is; elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """What `save` wrote to `path`, with its tensors on `device`. No object is unpickled, so a foreign file runs nothing.

    Raises `RetractError` if there is no such file, or if it is not a whole checkpoint of plain values.
    """
    if not path.is_file():
        raise RetractError(f"no checkpoint {path}; start afresh, or name the file that save() wrote")
    try:
        _check(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises what the zip file and the unpickler happen to raise
        told = pickles.shown(str(error) if isinstance(error, RetractError) else f"{type(error).__name__}: {error}")
        raise RetractError(f"{path} is not a whole checkpoint of plain values ({told}); use an earlier one") from error


def _check(path: Path) -> None:
    """Raises for what has changed since it was written, and for what would keep torch's own reader busy or fill the memory: records
    that unpack to more than they take in the file, which `torch.save` does not write, and pickles that are no tree of plain values."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(
            record.compress_type != zipfile.ZIP_STORED or record.file_size > record.compress_size for record in records
        ):
            raise RetractError("it is compressed, and checkpoints are not")
        if damaged := archive.testzip():  # torch does not look at the checksums that it writes
            raise RetractError(f"the checksum of {damaged} is wrong")
        (index,) = (record for record in records if record.filename.endswith("/data.pkl"))
        pickles.read(archive.read(index), "plain values", lambda name: True, _MOST)
