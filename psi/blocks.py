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

__all__ = ["factors", "points", "turned"]

PATIENCE = 8
"""After so many slices in a row that are points of their own, all others are taken to be, unless they are equal to the next one."""


def points(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], relation: Relation, tolerance: float, floor: float
) -> dict[int, Indices]:
    """Number k of columns → columns of the relation by points, (points, k)."""
    count = len(relation.left[0].offsets)
    if relation.degree != 1 or min(_height(side, weights) for side in (relation.left, relation.right)) == 1:
        return {1: np.arange(count)[:, None]}
    classes = _Moments(weights, gradients, relation, tolerance, floor).classes(count)
    classes.sort(key=lambda some: some.tolist())
    return {
        k: np.stack([some for some in classes if len(some) == k])
        for k in sorted({len(some) for some in classes}, reverse=True)
    }


def turned(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], relation: Relation, tolerance: float, floor: float
) -> bool:
    """Whether both sides are pairs of slices, x and y, that may also be turned together: Σ x ∂L/∂y − y ∂L/∂x = 0 over both, as under
    rotary embeddings."""
    parts = relation.left + relation.right
    if any(part.rows[-1:] == () or part.rows[-1][0] != 2 for part in parts):
        return False
    found = []
    for part in parts:
        w, g = (_matrix(t[part.axis.name].detach(), part) for t in (weights, gradients))
        shape = len(w), prod(n for n, _ in part.rows[:-1]), 2, -1
        (x, y), (gx, gy) = w.view(shape).unbind(2), g.view(shape).unbind(2)
        found += [(x * gy).flatten(1), -(y * gx).flatten(1)]
    products = torch.cat(found, 1)
    gap, size = products.sum(1).abs(), products.norm(dim=1)
    live = size > floor
    return bool(live.any()) and bool((gap <= tolerance * size)[live].all())


class _Moments:
    """The moment maps BᵀG_B and (AᵀG_A)ᵀ of the two sides of a relation, all slices together, in one backward pass."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        relation: Relation,
        tolerance: float,
        floor: float,
    ) -> None:
        # Their difference is a sum of products (rows of the first) · (rows of the second)ᵀ, with signs.
        self._terms = [
            (sign, _matrix(one[part.axis.name].detach(), part), _matrix(other[part.axis.name].detach(), part))
            for sign, parts, one, other in (
                (1, relation.left, weights, gradients),
                (-1, relation.right, gradients, weights),
            )
            for part in parts
        ]
        self._tolerance, self._floor = tolerance, floor
        self._most = tolerance * sum(float(one.norm() * other.norm()) for _, one, other in self._terms)
        """What is larger is no rounding: a quick test that leaves few places for the exact one."""

    def classes(self, count: int) -> list[Indices]:
        """The columns of each point, all of them once."""
        near, left, found, single = set(self._neighbours().tolist()), set(range(count)), [], 0
        for column in sorted(left, key=lambda column: column not in near):
            if column not in left:
                continue
            some = np.array([column])
            if single < PATIENCE:
                some = np.array([c for c in self._together(column).tolist() if c in left])
                single = 0 if len(some) > 1 or column in near else single + 1
            left -= set(some.tolist())
            found.append(some)
        return found

    def _together(self, column: int) -> Indices:
        """The columns that are of one point with `column`: where both maps agree at both places, (column, c) and (c, column)."""
        gap = sum(sign * (other @ one[column]) for sign, one, other in self._terms)
        others = self._small(gap)
        others = others[others != column]
        return np.sort(np.append(self._mixed(others, np.full_like(others, column)), column))

    def _neighbours(self) -> Indices:
        """The columns c such that c + 1 is of one point with them."""
        gap = sum(sign * (one[:-1] * other[1:]).sum(1) for sign, one, other in self._terms)
        columns = self._small(gap)
        return self._mixed(columns, columns + 1)

    def _small(self, gap: Tensor | int) -> Indices:
        return np.flatnonzero((torch.as_tensor(gap).abs() <= self._most).cpu().numpy())

    def _mixed(self, columns: Indices, others: Indices) -> Indices:
        """Those of `columns` that are of one point with their `others`."""
        i, j = (torch.from_numpy(some).to(self._terms[0][1].device) for some in (columns, others))
        return columns[(self._agree(i, j) & self._agree(j, i)).cpu().numpy()]

    def _agree(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether differences are rounding at (i, j); where there is no gradient, nothing agrees."""
        products = [(sign, one[i] * other[j]) for sign, one, other in self._terms]
        gap = torch.stack([sign * product.sum(1) for sign, product in products]).sum(0)
        size = torch.stack([product.square().sum(1) for _, product in products]).sum(0).sqrt()
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


def _height(side: tuple[Slices, ...], weights: Mapping[str, Tensor]) -> int:
    """How many numbers a column of one side of a relation has."""
    return sum(
        prod(n for n, _ in part.rows)
        * prod(size for dim, size in enumerate(weights[part.axis.name].shape) if dim not in part.axis.dims)
        for part in side
    )


def _matrix(t: Tensor, part: Slices) -> Tensor:
    """The slices of a parameter, and what they hold: (columns, rows); a view where one exists."""
    dims = part.axis.dims
    flat = t.movedim(dims, tuple(range(len(dims)))).reshape(prod(t.shape[dim] for dim in dims), -1)
    start, count = int(part.offsets[0]), len(part.offsets)
    if not part.rows and (part.offsets == np.arange(start, start + count)).all():
        return flat[start : start + count]
    indices = torch.from_numpy(part.indices).to(t.device)
    return flat[indices.flatten()].view(count, -1)


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
