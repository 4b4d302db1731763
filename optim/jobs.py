"""What the row kernel in Numba is handed: one array of words, kept from step to step. Layout only; no formula."""

from __future__ import annotations

import numpy as np
import torch

from .tables import COORDINATES, POINTS, Update

__all__ = ["CHOICES", "COUNTER", "NUMBERS", "WORDS", "Job"]

TASK = 2**15
"""Elements per task, about; 4,096 cost a tenth more on ResNet-50's weights."""
CHOICES = 7
"""How many of `Update`'s fields are choices."""
NUMBERS = len(Update._fields) - CHOICES + 2
"""`Update`'s other fields, and two constants of the dtype: √tiny and ε."""
COUNTER, WORDS = 6, 7 + CHOICES
"""Of a `Job`: table and its length, task starts and their number, numbers, bytes of a coordinate, counter of tasks
taken, choices."""


class Job:
    """The words and numbers that the kernel reads, kept from step to step."""

    def __init__(self, table: np.ndarray) -> None:
        self.starts = _starts(table)
        self.numbers = np.zeros(NUMBERS)
        self.update: Update | None = None
        self.words = np.array(
            (0, len(table), _at(self.starts), len(self.starts), _at(self.numbers), 0, 0, *[0] * CHOICES)
        )
        self.address = _at(self.words)

    def write(self, table: np.ndarray, update: Update, dtype: torch.dtype, constants: tuple[float, float]) -> None:
        """What is new in a step."""
        self.words[0], self.words[COUNTER] = _at(table), 0
        if update is not self.update:
            self.update = update
            self.words[5], self.words[WORDS - CHOICES :] = dtype.itemsize, update[:CHOICES]
            self.numbers[:] = (*update[CHOICES:], *constants)


def _starts(table: np.ndarray) -> np.ndarray:
    """Where each task starts, (tasks + 1, 2): matrix and row. Tasks are whole rows, of about `TASK` elements."""
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
