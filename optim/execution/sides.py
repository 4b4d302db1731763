"""Factors that are slices of parameters, as views, with their products: (points, rows, k) for k > 1, and for k = 1 a dimension per
level of the points. Layout only; no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...manifolds.parameters.factors import Grid

__all__ = ["Place", "Sides", "all_grams", "matrices_in", "root_of_sums"]

PIECE = 2**17
"""Elements of a product that is summed at once, in cache."""


class Place(NamedTuple):
    """Where slices are in a tensor that has those of some points only, or some of their rows."""

    grid: Grid
    """The slices in the tensor."""
    first: int
    """The first of their points."""
    last: int
    """The point after the last one."""


class Sides:
    """An array with the shape of the points, in parts of parameters: those of the left factor, and those of the right one."""

    def __init__(
        self, first: Tensor, parts: Sequence[Tensor], owned: Sequence[tuple[int, slice]], left: int, k: int, count: int
    ) -> None:
        self.first, self._parts, self._owned, self._left = first, parts, owned, left
        self.k, self.count = k, count
        """The number of points, of which each part has some."""

    @classmethod
    def of(cls, tensors: Sequence[Tensor], places: Sequence[Place], left: int, count: int) -> Sides:
        """The slices of parameters, or of arrays like them, as views where they exist."""
        parts: list[Tensor] = []
        owned: list[tuple[int, slice]] = []
        lefts = 0
        for i, ((grid, first, last), tensor) in enumerate(zip(places, tensors, strict=True)):
            if first == last:
                continue
            pieces = matrices_in(grid, tensor) or [grid.split(tensor)]
            parts += pieces
            owned += [(1 if grid.k > 1 else len(grid.point_levels), slice(first, last))] * len(pieces)
            lefts += len(pieces) * (i < left)
        return cls(tensors[0], parts, owned, lefts, places[0].grid.k, count)

    def _like(self, parts: Sequence[Tensor]) -> Sides:
        return Sides(self.first, parts, self._owned, self._left, self.k, self.count)

    def grams(self, other: Sides, into: Tensor) -> None:
        """Write the products of both factors with those of `other` to `into`, (2, points, k, k)."""
        if self.k == 1:
            into.copy_(self.dots(other))
            return
        into.zero_()
        for i, (a, b, (_, own)) in enumerate(zip(self._parts, other._parts, self._owned, strict=True)):
            into[int(i >= self._left), own].baddbmm_(a.mT, b)

    def dots(self, other: Sides) -> Tensor:
        """Dot products of both factors, (2, points, 1, 1)."""
        into = self.first.new_zeros(2, self.count, 1, 1, dtype=other.dtype)
        for i, (a, b, (points, own)) in enumerate(zip(self._parts, other._parts, self._owned, strict=True)):
            into[int(i >= self._left), own] += _dots(a, b, points).view(-1, 1, 1)
        return into

    def times(self, matrices: Tensor) -> Sides:
        """Each factor times its own of `matrices`, (2, points, k, k), in the memory order of this array."""
        found = [torch.empty_like(part) for part in self._parts]
        for i, (target, part, (_, own)) in enumerate(zip(found, self._parts, self._owned, strict=True)):
            torch.bmm(part, matrices[int(i >= self._left)][own], out=target)
        return self._like(found)

    def double(self) -> Sides:
        """The same in float64."""
        return self._like([part.double() for part in self._parts])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the array."""
        return self._parts[0].dtype if self._parts else self.first.dtype

    def add_(self, other: Sides, factors: Sequence[Any], keep: Any = 1.0) -> None:
        """Multiply by `keep`, and add `other` times a number, numbers or matrices per point for each factor."""
        for i, (part, added, (points, own)) in enumerate(zip(self._parts, other._parts, self._owned, strict=True)):
            factor, kept = (_own(number, own) for number in (factors[i >= self._left], keep))
            matrices = isinstance(factor, Tensor) and factor.ndim == 3 and factor.shape[-1] > 1
            if isinstance(kept, Tensor) or (kept != 1 and not matrices):
                part.mul_(_spread(kept, part, points))
                kept = 1.0
            if matrices:
                part.baddbmm_(added, factor, beta=kept)
            elif isinstance(factor, Tensor):
                part.addcmul_(added, _spread(factor, part, points))
            elif factor != 0:
                part.add_(added, alpha=factor)


def all_grams(sides: Sequence[Sides], others: Sequence[Sides] | None = None, wide: bool = False) -> Tensor:
    """Products of both factors of all sets with those of `others`, or with themselves, (2, points of all, k, k); if `wide` in
    float64."""
    counts, k, first = [side.count for side in sides], sides[0].k, sides[0].first
    found = first.new_empty(2, sum(counts), k, k, dtype=torch.float64 if wide else first.dtype)
    for a, b, into in zip(sides, others or sides, found.split(counts, 1), strict=True):
        if wide:
            doubled = a.double()
            doubled.grams(doubled if a is b else b.double(), into)
        else:
            a.grams(b, into)
    return found


def matrices_in(grid: Grid, tensor: Tensor) -> list[Tensor] | None:
    """The slices of `tensor` as views: for k > 1 matrices (points, rows, k), several if the rows are not evenly spaced; None where
    there are no such views. For k = 1 one, with a dimension per level."""
    pieces = [grid.strided(tensor)]
    if grid.k == 1:
        return [pieces[0].squeeze(tuple(range(-len(grid.column_levels), 0)))]
    shape = grid.points, grid.height, grid.k
    for split in (False, True):
        if split:
            for _ in grid.row_levels:
                pieces = [row for piece in pieces for row in piece.unbind(len(grid.point_levels))]
            shape = grid.points, grid.height // len(pieces), grid.k
        try:
            return [piece.view(shape) for piece in pieces]
        except RuntimeError:  # torch has no other test
            continue
    return None


def _dots(a: Tensor, b: Tensor, points: int) -> Tensor:
    """Sums of a · b over all but the first dimensions, which are `points`; in pieces that stay in cache."""
    rest = tuple(range(points, a.ndim))
    if points > 1 or not rest or a.numel() <= PIECE:
        return (a * b).sum(rest) if rest else a * b
    if a.ndim == 2 and a.stride(0) < a.stride(1):  # every point is a column: rows of products are added up
        size = PIECE // a.shape[0] + 1
        total = a.mT[:size] * b.mT[:size]
        for one, other in zip(a.mT.split(size)[1:], b.mT.split(size)[1:], strict=True):
            total[: len(one)].addcmul_(one, other)
        return total.sum(0)
    if a is b and a[0].is_contiguous():  # of others it takes ten times as long
        return torch.linalg.vector_norm(a, dim=rest).square()
    size = PIECE * a.shape[0] // a.numel() + 1
    return torch.cat([(one * other).sum(rest) for one, other in zip(a.split(size), b.split(size), strict=True)])


def root_of_sums(a: Sides, b: Sides, factors: Any) -> Tensor:
    """√(a·b) summed over both factors, each times its own of `factors`, (points, 1, 1); in float64 where sums in float32 overflow
    or vanish, or may do so and cannot be read."""
    sums = a.dots(b)
    dtype = sums.dtype
    if dtype == torch.float32 and not (sums.is_cpu and bool(((sums > 1e-30) & (sums < torch.inf)).all())):
        wide = a.double()
        sums = wide.dots(wide if a is b else b.double())
    return (sums * factors).sum(0).sqrt().to(dtype)


def _own(number: Any, own: slice) -> Any:
    """The part of numbers or matrices per point that belongs to some points."""
    return number[own] if isinstance(number, Tensor) and number.ndim else number


def _spread(factor: Any, part: Tensor, points: int) -> Any:
    """Numbers per point, (points, 1, 1), with the dimensions of `part`."""
    if not isinstance(factor, Tensor) or factor.ndim == 0:
        return factor
    return factor.view(*part.shape[:points], *(1,) * (part.ndim - points))
