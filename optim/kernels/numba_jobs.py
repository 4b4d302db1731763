"""What the row kernels in Numba have in common: the arguments of a call in memory, the tasks of a table, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from . import numba_loops as loops
from .launch import COORDINATES, POINTS, HyperbolicUpdate, Update

__all__ = ["CHOICES", "COUNTER", "Job", "compiled"]

TASK = 2**15
"""Elements per task, about; 4,096 cost a tenth more on ResNet-50's weights."""
COUNTER, CHOICES = 6, 7
"""Indices in `Job.words`, which has: table and its length, task starts and their number, numbers, bytes per coordinate,
counter of tasks taken, choices."""
_compiled: list[Any] = []


class Job:
    """The arguments of a kernel in memory, reused from step to step.

    Args:
        table: of the points.
        choices: number of choices that the kernel reads.
        numbers: number of numbers that it reads.
    """

    def __init__(self, table: np.ndarray, choices: int, numbers: int) -> None:
        self.starts = _starts(table)
        self.numbers = np.zeros(numbers)
        self.update: Update | HyperbolicUpdate | None = None
        self.words = np.array(
            (0, len(table), _at(self.starts), len(self.starts), _at(self.numbers), 0, 0, *[0] * choices)
        )
        self.address = _at(self.words)

    def write(
        self, table: np.ndarray, update: Update | HyperbolicUpdate, size: int, constants: tuple[float, ...]
    ) -> None:
        """Write what has changed since the last step; `size` in bytes per coordinate, the `constants` follow the numbers."""
        self.words[0], self.words[COUNTER] = _at(table), 0
        if update is not self.update:
            self.update = update
            self.words[5], self.words[CHOICES:] = size, update.choices[: len(self.words) - CHOICES]
            self.numbers[:] = (*update.numbers, *constants)


def _starts(table: np.ndarray) -> np.ndarray:
    """The start of each task, (tasks + 1, 2): matrix and row. A task is whole rows, of about `TASK` elements."""
    starts, filled = [(0, 0)], 0
    sizes = table[:, [POINTS, COORDINATES]].tolist()
    for matrix, (points, n) in enumerate(sizes):
        row = 0
        while row < points:
            rows = min(points - row, max(1, -(-(TASK - filled) // n)))
            row += rows
            filled += rows * n
            if filled >= TASK:
                starts.append((matrix, row))
                filled = 0
    if filled:
        starts.append((len(sizes) - 1, sizes[-1][0]))
    return np.array(starts, dtype=np.int64)


def _at(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def compiled(entry: Callable[[int], None]) -> int:
    """The address of the machine code of `entry`, a function of the address of a job's words; compiled or loaded."""
    signature = types.void(types.int64)  # the int64 is a pointer
    try:
        kernel = numba.cfunc(signature, cache=True, **loops.OPTIONS)(entry)
    except (RuntimeError, OSError):  # there is no folder for the cache
        kernel = numba.cfunc(signature, **loops.OPTIONS)(entry)
    assert kernel.address is not None
    _compiled.append(kernel)  # it owns the code at the address
    address: int = kernel.address
    return address
