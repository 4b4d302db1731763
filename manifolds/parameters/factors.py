"""`Part` and `Factors`: points whose coordinates are slices of parameters, in any modules and along any dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import GeometryError

__all__ = ["Factors", "Grid", "Levels", "Part", "Rest", "covered", "disjoint"]

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
        >>> Part("w", points=2, columns=3).grid(w.shape).split(w)[1].T  # the columns of the second point
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

    def __str__(self) -> str:
        """The name, and what is not as by default: the dimension, the first index, and points (further rows) × columns, with · between
        levels and @ before a distance that leaves gaps."""
        inner, shown = 1, []
        for levels, ends in ((self.columns, "×{}"), (self.rows, "({})"), (self.points, "{}")):
            numbers = []
            for n, distance in reversed(_levels(levels, inner) if levels else ()):
                numbers.append(f"{n}" if distance == inner else f"{n}@{distance}")
                inner *= n
            shown += [ends.format("·".join(reversed(numbers)))] * bool(numbers)
        given = [f"dim {self.dim}"] * (self.dim != 0) + [f"{self.start}:"] * (self.start != 0)
        given += ["".join(reversed(shown))] * bool(shown)
        return f"{self.name}[{', '.join(given)}]" if given else self.name

    def resolved(self, shape: Sequence[int], k: int | None = None) -> Part:
        """The part with all numbers for a parameter of `shape`, on a manifold of factors with `k` columns.

        Raises `GeometryError` if `shape` does not have these slices.
        """
        grid = self.grid(shape, k)
        return replace(self, points=grid.point_levels, columns=grid.column_levels, rows=grid.row_levels)

    def grid(self, shape: Sequence[int], k: int | None = None, event_ndim: int = 2) -> Grid:
        """The slices of a parameter of `shape`; see `resolved`."""
        dims = _tuple(self.dim)
        if max(dims) >= len(shape):
            raise GeometryError(f"{self!r} has a dimension that shape {tuple(shape)} does not have")
        sizes = [shape[a] for a in dims]
        length = prod(sizes)
        columns = _levels((k or 1) if self.columns is None else self.columns, 1)
        inner = _count(columns) * _count(self.rows)
        points = self.points if self.points is not None else max(1, (length - self.start) // inner)
        placed, stacked, beside = (_split(each, sizes) for each in (_levels(points, inner), self.rows, columns))
        found = Grid(dims, self.start, placed, stacked, beside, tuple(shape), event_ndim)
        if k is not None and found.k != k:
            raise GeometryError(f"{self!r} has {found.k} columns per point, and the manifold {k}")
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
                f"{self!r}: the {length - self.start} slices of dimension {self.dim} of shape {tuple(shape)} are no multiple of "
                f"the {inner} of a point; say how many points there are"
            )
        return found


@dataclass(frozen=True)
class Factors:
    """The factors B = `left` and Aᵀ = `right` of points B A, which a change to B R and R⁻¹ A leaves as they are.

    The rows of all `left` parts, one below the other, are the n × k factor B of a point; those of `right` are the m × k
    factor Aᵀ. Without `right` the slices are points of any manifold of vectors or matrices.

    Example:
        >>> from retract.manifolds import Factors, Part
        >>> lora = Factors((Part("lora_B.weight", dim=1),), (Part("lora_A.weight"),))
        >>> relu = Factors((Part("2.weight", dim=1),), (Part("0.weight"), Part("0.bias")))
        >>> print(relu)
        2.weight[dim 1] × 0.weight + 0.bias

    Raises:
        GeometryError: parts that are none.
    """

    left: tuple[Part, ...]
    """The parts of B, one below the other."""
    right: tuple[Part, ...] = ()
    """The parts of Aᵀ."""

    def __post_init__(self) -> None:
        sides = (self.left, self.right)
        if not all(isinstance(side, tuple) and all(isinstance(part, Part) for part in side) for side in sides):
            raise GeometryError(f"left={self.left!r} and right={self.right!r} are not tuples of Part")
        if not self.left:
            raise GeometryError("left has no parts; a point has at least one")

    def __str__(self) -> str:
        """Both factors, with their parts."""
        return " × ".join(" + ".join(map(str, side)) for side in (self.left, self.right) if side)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, those of the left factor first."""
        return self.left + self.right

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, each once."""
        return tuple(dict.fromkeys(part.name for part in self.parts))

    def renamed(self, names: Callable[[str], str]) -> Factors:
        """The same factors of parameters with other names."""
        sides = (tuple(replace(part, name=names(part.name)) for part in side) for side in (self.left, self.right))
        return Factors(*sides)

    def layouts(self, tensors: Sequence[Tensor], event_ndim: int) -> list[Grid]:
        """How each of `tensors`, one per part, is cut into points of `event_ndim` dimensions."""
        return [_grid(part, t.shape, event_ndim) for part, t in zip(self.parts, tensors, strict=True)]


class Grid(NamedTuple):
    """`Part` resolved for one shape; a layout like `rows.Layout`."""

    dims: tuple[int, ...]
    start: int
    point_levels: Levels
    row_levels: Levels
    column_levels: Levels
    shape: tuple[int, ...]
    event_ndim: int

    @property
    def points(self) -> int:
        """The number of points."""
        return _count(self.point_levels)

    @property
    def k(self) -> int:
        """The number of columns of a factor."""
        return _count(self.column_levels)

    @property
    def height(self) -> int:
        """The number of rows of a factor that are in this part."""
        return _count(self.row_levels) * prod(self.shape[a] for a in self._others)

    @property
    def batch(self) -> tuple[int, ...]:
        """The dimensions of points, one."""
        return (self.points,)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one point: rows and columns of a factor, or all of its entries."""
        return (self.height, self.k) if self.event_ndim == 2 else (self.height * self.k,)

    @property
    def scalar(self) -> tuple[int, ...]:
        """The shape of scalars per point."""
        return (self.points, *(1,) * self.event_ndim)

    @property
    def last(self) -> int:
        """The largest index."""
        return self.start + sum((n - 1) * distance for n, distance in self._levels)

    @property
    def _levels(self) -> Levels:
        return self.point_levels + self.row_levels + self.column_levels

    @property
    def _others(self) -> list[int]:
        return [a for a in range(len(self.shape)) if a not in self.dims]

    def fits(self) -> bool:
        """Whether no level carries from one dimension to the next."""
        ends = [self._digits(self.start)]
        for n, distance in self._levels:
            ends.append([(n - 1) * digit for digit in self._digits(distance)])
        places = zip(self.dims, *ends, strict=True)
        return all(sum(digits) < self.shape[a] for a, *digits in places)

    def split(self, tensor: Tensor) -> Tensor:
        """The slices of `tensor`, which has the shape of the parameter: (points, *event); a view where one exists."""
        return self.strided(tensor).reshape(self.batch + self.event)

    def write(self, tensor: Tensor, points: Tensor) -> None:
        """Write `points`, as `split` gives them, to their places in `tensor`."""
        target = self.strided(tensor)
        target.copy_(points.reshape(target.shape))

    def split_scalars(self, tensor: Tensor) -> Tensor:
        """Scalars per point, which have their shape already."""
        return tensor

    def mask(self) -> Tensor:
        """Which entries of the parameter belong to the slices, bool of its shape.

        Raises `GeometryError` for slices that are there twice.
        """
        counts = torch.zeros(prod(self.shape), dtype=torch.int8)
        taken = self.strided(torch.arange(prod(self.shape)).view(self.shape)).flatten()
        counts.index_add_(0, taken, torch.ones_like(taken, dtype=torch.int8))
        if counts.numel() and counts.max() > 1:
            raise GeometryError("its levels have slices in common; a slice is one column of one point")
        return counts.bool().view(self.shape)

    def strided(self, tensor: Tensor) -> Tensor:
        """The slices as a view with a dimension per level: those of points, of rows, the other dimensions, those of columns."""
        outer, others = self.point_levels + self.row_levels, self._others
        sizes = [*(n for n, _ in outer), *(self.shape[a] for a in others), *(n for n, _ in self.column_levels)]
        strides = [
            *(self._stride(tensor, d) for _, d in outer),
            *(tensor.stride(a) for a in others),
            *(self._stride(tensor, d) for _, d in self.column_levels),
        ]
        return tensor.as_strided(sizes, strides, tensor.storage_offset() + self._stride(tensor, self.start))

    @property
    def inner_size(self) -> int:
        """How many indices there are to one of the first of `dims`."""
        return prod(self.shape[a] for a in self.dims[1:])

    def _stride(self, tensor: Tensor, distance: int) -> int:
        return sum(digit * tensor.stride(a) for digit, a in zip(self._digits(distance), self.dims, strict=True))

    def _digits(self, index: int) -> list[int]:
        """The indices of `dims` for an index that counts them together."""
        digits = []
        for a in reversed(self.dims[1:]):
            index, digit = divmod(index, self.shape[a])
            digits.append(digit)
        return [index, *reversed(digits)]


@dataclass(frozen=True)
class Rest:
    """The entries of a parameter that are in none of `parts`, in place of `Rows`: points of flat space, one per entry."""

    parts: tuple[Part, ...]

    def layouts(self, tensors: Sequence[Tensor], event_ndim: int) -> list[RestLayout]:
        """The entries of the parameter, the only one of `tensors`."""
        return [RestLayout(covered(self.parts, tuple(t.shape))) for t in tensors]


class RestLayout(NamedTuple):
    """`Rest` resolved for one shape; a layout like `rows.Layout`."""

    covered: Tensor

    @property
    def batch(self) -> tuple[int, ...]:
        """The number of entries."""
        return (int((~self.covered).sum()),)

    @property
    def event(self) -> tuple[int, ...]:
        """Of a number."""
        return ()

    @property
    def scalar(self) -> tuple[int, ...]:
        """The shape of scalars per point."""
        return self.batch

    def split(self, tensor: Tensor) -> Tensor:
        """The entries of `tensor`, (points,)."""
        return tensor[~self.covered.to(tensor.device)]

    def write(self, tensor: Tensor, points: Tensor) -> None:
        """Write `points` to their places in `tensor`."""
        tensor[~self.covered.to(tensor.device)] = points.to(tensor.dtype)

    def split_scalars(self, tensor: Tensor) -> Tensor:
        """Scalars per point, which have their shape already."""
        return tensor


@lru_cache(maxsize=4096)
def covered(parts: tuple[Part, ...], shape: tuple[int, ...]) -> Tensor:
    """Which entries of a parameter of `shape` are in `parts`, all of it, bool.

    Raises `GeometryError` for parts with entries in common.
    """
    taken = torch.zeros(shape, dtype=torch.bool)
    for part in parts:
        mask = part.grid(shape).mask()
        if (taken & mask).any():
            others = ", ".join(str(other) for other in parts if other is not part)
            raise GeometryError(f"{part} and {others} have entries in common: an entry belongs to one point")
        taken |= mask
    return taken


@lru_cache(maxsize=4096)
def _grid(part: Part, shape: tuple[int, ...], event_ndim: int) -> Grid:
    """`Part.grid`, which steps ask for again and again."""
    return part.grid(shape, event_ndim=event_ndim)


def disjoint(parts: tuple[Part, ...], shape: tuple[int, ...]) -> bool:
    """Whether `parts` of a parameter of `shape` have no entries in common."""
    try:
        covered(parts, shape)
    except GeometryError:
        return False
    return True


def _count(levels: Levels) -> int:
    return prod(n for n, _ in levels)


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
