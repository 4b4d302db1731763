"""From slices with equal charges to points: which slices are columns of one factor, and on which grids they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..errors import GeometryError
from ..manifolds.parameters.factors import Factors, Levels, Part
from .charges import Indices
from .relations import Relation, Slices

__all__ = ["Moments", "factors"]

PATIENCE = 8
"""After so many slices in a row that are points of their own, all others are taken to be, unless they are equal to the next one."""


class Moments:
    """The moment maps BᵀG_B and p (AᵀG_A)ᵀ of the two sides of a relation, all slices together, in one backward pass."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        relation: Relation,
        tolerance: float,
        floor: float,
    ) -> None:
        sides = (relation.left, relation.right)
        self._w = [torch.cat([_matrix(weights[part.axis.name].detach(), part) for part in side], 1) for side in sides]
        self._g = [torch.cat([_matrix(gradients[part.axis.name], part) for part in side], 1) for side in sides]
        self._w2, self._g2 = [w.square() for w in self._w], [g.square() for g in self._g]
        self._degree, self._tolerance, self._floor = relation.degree, tolerance, floor

    @property
    def residuals(self) -> Tensor:
        """Of the diagonal, relative to the size it would have if products had random signs: (columns,); 0 without a gradient."""
        (left, left2), (right, right2) = (
            ((w * g).sum(1), (w * g).square().sum(1)) for w, g in zip(self._w, self._g, strict=True)
        )
        size = left2.sqrt() + self._degree * right2.sqrt()
        return torch.where(size > self._floor, (left - self._degree * right).abs() / size, 0.0)

    def points(self) -> dict[int, Indices]:
        """Number k of columns → columns of the relation by points, (points, k). Columns that do not agree after all are left out."""
        good = np.flatnonzero((self.residuals <= self._tolerance).cpu().numpy())
        classes = self._classes(good) if self._degree == 1 else [np.array([column]) for column in good]
        classes.sort(key=lambda some: some.tolist())
        return {
            k: np.stack([some for some in classes if len(some) == k])
            for k in sorted({len(some) for some in classes}, reverse=True)
        }

    def _classes(self, good: Indices) -> list[Indices]:
        near, left, classes, single = set(self._neighbours().tolist()), set(good.tolist()), [], 0
        for column in sorted(left, key=lambda column: column not in near):
            if column not in left:
                continue
            some = np.array([column])
            if single < PATIENCE:
                some = np.array([c for c in self._together(column).tolist() if c in left])
                single = 0 if len(some) > 1 or column in near else single + 1
            left -= set(some.tolist())
            classes.append(some)
        return classes

    def _together(self, column: int) -> Indices:
        """The columns that are of one point with `column`: where both maps agree at both places, (column, c) and (c, column)."""
        agree = self._gaps(column, None) & self._gaps(None, column)
        agree[column] = True
        return np.flatnonzero(agree.cpu().numpy())

    def _neighbours(self) -> Indices:
        """The columns c such that c + 1 is of one point with them."""
        return np.flatnonzero((self._near(0, 1) & self._near(1, 0)).cpu().numpy())

    def _gaps(self, row: int | None, column: int | None) -> Tensor:
        """Whether the maps agree at (row, c), or (c, column), for all c."""
        (wl, wr), (gl, gr), (wl2, wr2), (gl2, gr2) = self._w, self._g, self._w2, self._g2
        if row is not None:
            gap, size = gl @ wl[row] - wr @ gr[row], gl2 @ wl2[row] + wr2 @ gr2[row]
        else:
            gap, size = wl @ gl[column] - gr @ wr[column], wl2 @ gl2[column] + gr2 @ wr2[column]
        return self._agree(gap, size)

    def _near(self, one: int, other: int) -> Tensor:
        """Whether they agree at (c + one, c + other), for all c but the last."""
        (wl, wr), (gl, gr) = self._w, self._g
        last = len(wl) - 1
        here, there = slice(one, last + one), slice(other, last + other)
        left, right = wl[here] * gl[there], wr[there] * gr[here]
        return self._agree(left.sum(1) - right.sum(1), left.square().sum(1) + right.square().sum(1))

    def _agree(self, gap: Tensor, squares: Tensor) -> Tensor:
        """Whether differences are rounding; where there is no gradient, nothing agrees."""
        size = squares.sqrt()
        return (gap.abs() <= self._tolerance * size) & (size > self._floor)


def factors(
    relation: Relation, columns: Indices, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Factors, Indices]]:
    """The relation's slices at `columns` (points, k) as factors on regular grids, as few as it takes, with their columns."""
    whole = _on_grids(relation, columns, shapes)
    starts = [0]
    if whole is None:
        parts = relation.left + relation.right
        steps = np.concatenate([np.diff(part.offsets[columns], axis=0) for part in parts], 1)
        outer = np.stack([part.offsets[columns[:, 0]] // _width(part, shapes) for part in parts])
        for place in range(1, len(columns)):
            irregular = place - starts[-1] > 1 and (steps[place - 1] != steps[place - 2]).any()
            if irregular or (outer[:, place] != outer[:, place - 1]).any():
                starts.append(place)
    for start, end in pairwise([*starts, len(columns)]):
        some = columns[start:end]
        found = whole or _on_grids(relation, some, shapes)
        if found is not None:
            yield found, some


def _width(part: Slices, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many indices of an axis of several dimensions are within one index of the first of them."""
    return prod(shapes[part.axis.name][dim] for dim in part.axis.dims[1:] or part.axis.dims)


def _on_grids(relation: Relation, columns: Indices, shapes: Mapping[str, tuple[int, ...]]) -> Factors | None:
    sides = []
    for side in (relation.left, relation.right):
        parts = [_part(part, columns, shapes[part.axis.name]) for part in side]
        if None in parts:
            return None
        sides.append(tuple(part for part in parts if part is not None))
    return Factors(*sides)


def _matrix(t: Tensor, part: Slices) -> Tensor:
    """The slices of a parameter, and what they hold: (columns, rows)."""
    dims = part.axis.dims
    flat = t.movedim(dims, tuple(range(len(dims)))).reshape(prod(t.shape[dim] for dim in dims), -1)
    indices = torch.from_numpy(part.indices).to(t.device)
    return flat[indices.flatten()].view(len(indices), -1)


def _part(part: Slices, columns: Indices, shape: tuple[int, ...]) -> Part | None:
    """As a `Part`, with what follows from the shape left out, or None where the slices are on no grid."""
    dims, offsets = part.axis.dims, part.offsets[columns]
    count, k = offsets.shape
    within = offsets - offsets[:, :1]
    levels = _levels(offsets[:, 0]), _levels(within[0])
    if (within != within[0]).any() or levels[0] is None or levels[1] is None:
        return None
    start, inner = int(offsets[0, 0]), k * prod(n for n, _ in part.rows)
    over, in_each = _plain(levels[0], inner), _plain(levels[1], 1)
    rest = over == count and count * inner == prod(shape[dim] for dim in dims) - start
    dim = dims[0] if len(dims) == 1 else dims
    found = Part(part.axis.name, dim, start, None if rest else over, None if in_each == k else in_each, part.rows)
    try:
        found.grid(shape, k)
    except GeometryError:  # across the indices of one of several dimensions
        return None
    return found


def _plain(levels: Levels, distance: int) -> int | Levels:
    """A number for slices that follow each other at `distance`."""
    return levels[0][0] if len(levels) == 1 and levels[0][1] == distance else levels or 1


def _levels(numbers: Indices) -> Levels | None:
    """Numbers and distances of the levels of a grid in order, from the outer to the inner one."""
    if len(numbers) == 1:
        return ()
    steps = np.diff(numbers)
    other = np.flatnonzero(steps != steps[0])
    n = int(other[0]) + 1 if len(other) else len(numbers)
    if steps[0] < 1 or len(numbers) % n:
        return None
    table = numbers.reshape(-1, n)
    if (table - table[:, :1] != table[0] - table[0, 0]).any():
        return None
    outer = _levels(table[:, 0])
    return None if outer is None else (*outer, (n, int(steps[0])))
