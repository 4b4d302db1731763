"""Findings as lines of aligned tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

from ..manifolds.parameters.factors import Part
from .pairs import Pair

__all__ = ["aligned", "covered", "pair_rows", "runs"]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with a rule under its header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]


def pair_rows(pairs: Sequence[Pair], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, ...]]:
    """The cells of a table of pairs: factors, group of a point, points, residual, share of the parameters, reason."""
    total = sum(prod(shape) for shape in shapes.values())
    return [
        (
            *(" + ".join(map(str, side)) for side in (p.factors.left, p.factors.right)),
            (f"GL({p.k})" if p.k > 1 else p.group) + (f", degree {p.degree:g}" if p.degree != 1 else ""),
            str(p.points),
            f"{p.residual:.0e}",
            f"{100 * p.entries / total:.1f} %",
            p.reason,
        )
        for p in pairs
    ]


def covered(part: Part, shape: tuple[int, ...], k: int, dim: int) -> Tensor:
    """Which indices of a dimension of a parameter have slices in `part`, bool."""
    mask = part.grid(shape, k).mask()
    others = tuple(other for other in range(len(shape)) if other != dim)
    return mask.sum(others) > 0 if others else mask


def runs(labels: Sequence[object]) -> list[tuple[object, int, int]]:
    """(label, first, last) of each stretch of equal labels."""
    found: list[tuple[object, int, int]] = []
    for place, label in enumerate(labels):
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1], place)
        else:
            found.append((label, place, place))
    return found
