"""Findings as lines of aligned tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

from ..manifolds.parameters.factors import Factors, Part
from .pairs import Pair

__all__ = ["aligned", "covered", "pair_rows", "runs", "slices_told"]


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


def slices_told(slices: Sequence[Factors], shape: tuple[int, ...]) -> str:
    """Which slices of a parameter are points, in words."""
    told = []
    for points in slices:
        part = points.left[0]
        grid = part.grid(shape)
        spans = [(dim, _spans(part, shape, grid.k, dim)) for dim in grid.dims]
        places = [f"{'rows' if dim == 0 else f'dim {dim},'} {of} of {shape[dim]}" for dim, of in spans if of]
        *outer, (number, apart) = grid.column_levels
        block = f"block of {number}" if apart == 1 else f"{number} that are {apart} apart"
        block = f"{prod(n for n, _ in outer)} blocks of {number}" if outer else block
        told.append(f"{' of '.join(places[::-1]) or 'all slices'}{f' per {block}' if grid.k > 1 else ''}")
    return f"{'; '.join(told[:3])}{' …' if len(told) > 3 else ''} may be rescaled"


def covered(part: Part, shape: tuple[int, ...], k: int | None, dim: int) -> Tensor:
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


def _spans(part: Part, shape: tuple[int, ...], k: int | None, dim: int) -> str:
    """The indices of a dimension that have slices in `part`; empty if all have."""
    found = runs(covered(part, shape, k, dim).tolist())
    spans = [f"{a}–{b}" if a < b else str(a) for label, a, b in found if label]
    return "" if spans == [f"0–{shape[dim] - 1}"] else f"{', '.join(spans[:2])}{', …' if len(spans) > 2 else ''}"
