"""`Part` and `Factors`: points whose coordinates are slices of parameters, in any modules and along any dimension."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import GeometryError

__all__ = ["Factors", "Grid", "Levels", "Part"]

Levels = tuple[tuple[int, int], ...]
"""A regular grid of indices: (number, distance) of each level, from the outer to the inner one."""


@dataclass(frozen=True)
class Part:
    """Slices of a parameter along `dim`, as the columns of one factor of each point; all other dimensions are its rows.

    With one level each, column c of point p is the slice at ``start + p · (distance of points) + c · (distance of columns)``.
    A number stands for that many consecutive slices. Left out, `columns` is the k of the manifold, and `points` are as many
    as follow `start`.

    ==========================================================  ====================================================
    value                                                       columns of
    ==========================================================  ====================================================
    ``Part("up.weight")``                                       k = 1: every row of a Linear, a point per unit
    ``Part("down.weight", dim=1)``                              k = 1: every column of the next one
    ``Part("v.weight", points=12, columns=64)``                 12 heads, from the rows of the value projection
    ``Part("qkv.weight", 0, 1536, 12, 64)``                     the third section of a fused weight
    ``Part("qkv.weight", 0, 64, ((12, 192),), 64)``             keys, where every head has its q, k, v side by side
    ``Part("q.weight", 0, 0, ((4, 512),), 64, ((8, 64),))``     8 query heads per key head: all rows of one factor
    ``Part("experts.up", dim=(0, 1))``                          k = 1: every row of each of the stacked experts
    ==========================================================  ====================================================

    Example:
        >>> import torch
        >>> from retract.manifolds import Part
        >>> w = torch.arange(12.0).view(6, 2)
        >>> Part("w", points=2, columns=3).grid(w.shape).view(w)[1].T  # the columns of the second point
        tensor([[ 6.,  7.],
                [ 8.,  9.],
                [10., 11.]])

    Raises:
        GeometryError: numbers that are no indices.
    """

    name: str
    """Name of the parameter, relative to the module on which it is declared."""
    dim: int | tuple[int, ...] = 0
    """The dimension, or the dimensions whose indices are counted together, the last one fastest, as in ``flatten``."""
    start: int = 0
    """The first index."""
    points: int | Levels | None = None
    """The grid of points."""
    columns: int | Levels | None = None
    """The grid of the columns of one point."""
    rows: Levels = ()
    """A grid of slices that are further rows of the same factor."""

    def __post_init__(self) -> None:
        dims = _tuple(self.dim)
        if not dims or any(not isinstance(a, int) or a < 0 for a in dims) or len(set(dims)) != len(dims):
            raise GeometryError(f"{self!r}: dim is one non-negative dimension or several different ones")
        if not isinstance(self.start, int) or self.start < 0:
            raise GeometryError(f"{self!r}: start is an index ≥ 0")
        for name in ("points", "columns", "rows"):
            value = getattr(self, name)
            numbers = [value] if isinstance(value, int) else [a for level in value or () for a in level]
            if any(not isinstance(a, int) or a < 1 for a in numbers):
                raise GeometryError(f"{self!r}: {name} is a number ≥ 1, or pairs of a number and a distance, both ≥ 1")

    def grid(self, shape: tuple[int, ...], k: int = 1) -> Grid:
        """The slices of a parameter of `shape`, for points with `k` columns.

        Raises `GeometryError` if `shape` does not have them.
        """
        dims = _tuple(self.dim)
        if max(dims) >= len(shape):
            raise GeometryError(f"{self!r} has a dimension that shape {tuple(shape)} does not have")
        length = prod(shape[a] for a in dims)
        columns = _levels(k if self.columns is None else self.columns, 1)
        inner = prod(n for n, _ in columns) * prod(n for n, _ in self.rows)
        points = self.points if self.points is not None else max(1, (length - self.start) // inner)
        sizes = [shape[a] for a in dims]
        levels = (_split(each, sizes) for each in (_levels(points, inner), self.rows, columns))
        found = Grid(dims, self.start, *levels, tuple(shape))
        if found.last >= length:
            raise GeometryError(
                f"{self!r} goes up to index {found.last}, and dimension {self.dim} of shape {tuple(shape)} has {length}"
            )
        if not found.fits():
            raise GeometryError(
                f"{self!r}: a level of the grid crosses from one index of a dimension to the next; "
                f"a level lies within one of the dimensions {self.dim} of shape {tuple(shape)}"
            )
        if self.points is None and found.points * inner != length - self.start:
            raise GeometryError(
                f"{self!r}: {length - self.start} slices of dimension {self.dim} of shape {tuple(shape)} are no multiple of "
                f"the {inner} of a point; say how many points there are"
            )
        return found


@dataclass(frozen=True)
class Factors:
    """The parts of the two factors B = [left] and A = [right] of points B A: pairs that may be transformed, B R and R⁻¹ A,
    without changing the network.

    The rows of all `left` parts, one below the other, are the n × k factor B of a point, those of `right` the m × k factor Aᵀ.

    Example:
        >>> from retract.manifolds import Factors, Part
        >>> lora = Factors(left=(Part("lora_B.weight", dim=1),), right=(Part("lora_A.weight"),))
        >>> relu = Factors((Part("2.weight", dim=1),), (Part("0.weight"), Part("0.bias")))

    Raises:
        GeometryError: a side without parts.
    """

    left: tuple[Part, ...]
    right: tuple[Part, ...]

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            parts = getattr(self, name)
            if not isinstance(parts, tuple) or not parts or not all(isinstance(part, Part) for part in parts):
                raise GeometryError(f"{self!r}: {name} is a tuple of at least one Part")

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, those of the left factor first."""
        return self.left + self.right


class Grid(NamedTuple):
    """`Part` resolved for one shape."""

    dims: tuple[int, ...]
    start: int
    point_levels: Levels
    row_levels: Levels
    column_levels: Levels
    shape: tuple[int, ...]

    @property
    def points(self) -> int:
        """The number of points."""
        return prod(n for n, _ in self.point_levels)

    @property
    def k(self) -> int:
        """The number of columns of a factor."""
        return prod(n for n, _ in self.column_levels)

    @property
    def height(self) -> int:
        """The number of rows of a factor that are in this part."""
        others = [size for a, size in enumerate(self.shape) if a not in self.dims]
        return prod(n for n, _ in self.row_levels) * prod(others)

    @property
    def last(self) -> int:
        """The largest index."""
        return self.start + sum((n - 1) * distance for levels in self._levels for n, distance in levels)

    @property
    def _levels(self) -> tuple[Levels, Levels, Levels]:
        return self.point_levels, self.row_levels, self.column_levels

    def fits(self) -> bool:
        """Whether no level carries from one dimension to the next."""
        ends = [
            a + sum((n - 1) * self._digits(d)[i] for levels in self._levels for n, d in levels)
            for i, a in enumerate(self._digits(self.start))
        ]
        return all(end < self.shape[a] for end, a in zip(ends, self.dims, strict=True))

    def view(self, tensor: Tensor) -> Tensor:
        """The slices of `tensor`, which has the shape of the parameter: (points, rows, k); a view where one exists."""
        return self.strided(tensor).reshape(self.points, self.height, self.k)

    def strided(self, tensor: Tensor) -> Tensor:
        """As `view`, always a view, with every level as a dimension of its own: those of points, rows, other dimensions, columns."""
        others = [a for a in range(len(self.shape)) if a not in self.dims]
        others.sort(key=lambda a: -tensor.stride(a))
        sizes = [n for n, _ in (*self.point_levels, *self.row_levels)]
        strides = [self._stride(tensor, distance) for _, distance in (*self.point_levels, *self.row_levels)]
        sizes += [tensor.shape[a] for a in others] + [n for n, _ in self.column_levels]
        strides += [tensor.stride(a) for a in others] + [self._stride(tensor, d) for _, d in self.column_levels]
        return tensor.as_strided(sizes, strides, tensor.storage_offset() + self._stride(tensor, self.start))

    def mask(self) -> Tensor:
        """Which entries of the parameter belong to the part, bool of its shape.

        Raises `GeometryError` for slices that are in the part twice.
        """
        counts = torch.zeros(self.shape, dtype=torch.int8)
        taken = self.strided(torch.arange(prod(self.shape)).view(self.shape)).flatten()
        counts.view(-1).index_add_(0, taken, torch.ones_like(taken, dtype=torch.int8))
        if counts.max() > 1:
            raise GeometryError(
                f"the levels {self._levels} have slices in common: a slice belongs to one column of one point"
            )
        return counts.bool()

    def _stride(self, tensor: Tensor, distance: int) -> int:
        return sum(digit * tensor.stride(a) for digit, a in zip(self._digits(distance), self.dims, strict=True))

    def _digits(self, index: int) -> list[int]:
        """The indices of `dims` for an index that counts them together."""
        digits = []
        for a in reversed(self.dims):
            index, digit = divmod(index, self.shape[a]) if a != self.dims[0] else (0, index)
            digits.append(digit)
        return digits[::-1]


def _levels(value: int | Levels, distance: int) -> Levels:
    return ((value, distance),) if isinstance(value, int) else value


def _split(levels: Levels, sizes: list[int]) -> Levels:
    """`levels` with those cut that run through several dimensions of `sizes`."""
    for place in range(1, len(sizes)):
        size, found = prod(sizes[place:]), []
        for n, distance in levels:
            cut = size // distance if distance and size % distance == 0 else 0
            whole = cut > 1 and n > cut and n % cut == 0
            found += [(n // cut, size), (cut, distance)] if whole else [(n, distance)]
        levels = tuple(found)
    return levels


def _tuple(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    return axes if isinstance(axes, tuple) else (axes,)
