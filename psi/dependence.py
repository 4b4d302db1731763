"""Linear relations with simple coefficients between the columns of a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from .charges import Array

__all__ = ["dependences"]

SMALL = 1e-7
"""Coefficients that are zero, relative to the largest."""
DENOMINATOR = 3
"""Of coefficients, at most."""


def dependences(columns: Array, sizes: Array, tolerance: float) -> Iterator[dict[int, Fraction]]:
    """Relations Σ aⱼ xⱼ = 0 between columns xⱼ, as {j: aⱼ}, a basis in echelon form.

    They hold in every row within `tolerance` of Σ |aⱼ| · sizes. Where there are not clearly more rows than columns, nothing can be told.
    """
    samples, count = columns.shape
    if samples < count + 2:
        return
    norms = np.linalg.norm(columns, axis=0)
    _, values, vectors = np.linalg.svd(columns / norms, full_matrices=False)
    null = _echelon(vectors[values < SMALL])
    for row in null:
        scaled = row / norms
        scaled[np.abs(row) < SMALL * np.abs(row).max()] = 0.0
        chosen = np.flatnonzero(scaled)
        ratios = scaled[chosen] / np.abs(scaled[chosen]).min()
        simple = [Fraction(float(a)).limit_denominator(DENOMINATOR) for a in ratios]
        exact = np.array([float(a) for a in simple])
        gap = np.abs(columns[:, chosen] @ exact)
        if (gap <= tolerance * (sizes[:, chosen] @ np.abs(exact))).all():
            yield dict(zip(chosen.tolist(), simple, strict=True))


def _echelon(rows: Array) -> Array:
    """`rows` reduced, with pivots in the first columns that have one."""
    rows, place = rows.copy(), 0
    for column in range(rows.shape[1] if len(rows) else 0):
        pivot = place + int(np.abs(rows[place:, column]).argmax())
        if abs(rows[pivot, column]) < SMALL:
            continue
        rows[[place, pivot]] = rows[[pivot, place]]
        rows[place] /= rows[place, column]
        others = np.arange(len(rows)) != place
        rows[others] -= np.outer(rows[others, column], rows[place])
        place += 1
        if place == len(rows):
            break
    return rows
