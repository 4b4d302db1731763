"""`Rows`: the cut of a parameter into points. The only place that reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import GeometryError
from ..base import Manifold
from .factors import Grid, RestLayout
from .shards import is_sharded, whole, write_

__all__ = ["AnyLayout", "Layout", "Rows", "gather", "overlaps", "scatter_"]

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rows:
    """The dimensions of a parameter that enumerate points; all others are the coordinates of a point.

    =========================  =============================  ===========================================
    value                      points                         for
    =========================  =============================  ===========================================
    ``Rows()``                 one per index of dim 0         Linear, Conv in front of BatchNorm
    ``Rows(dim=1, groups=g)``  one per output channel         ConvTranspose with g groups
    ``Rows(blocks=G)``         G consecutive blocks of dim 0  GroupNorm, the heads of QK-norm
    ``Rows.whole()``           the whole tensor               LayerNorm, RMSNorm
    ``Rows(dim=(0, 1))``       one per pair of indices        stacked experts; vectors along what remains
    =========================  =============================  ===========================================

    For manifolds of vectors the coordinates are flattened in memory order, which makes the result a view
    for channels_last weights too. For ``Euclidean(0)`` every entry is a point.

    On a manifold of matrices (n × p, of orthonormal columns) the last two dimensions are the matrix, and all before them
    enumerate points; an explicit `dim` must leave two dimensions. `columns` selects other dimensions for the p columns;
    dimensions that enumerate neither points nor columns are flattened into the n coordinates of a column:

    ==============================  =====================================  ============================
    value                           points                                 on Stiefel
    ==============================  =====================================  ============================
    ``Rows()``                      the tensor, out × in                   orthonormal columns of Linear
    ``Rows.whole(columns=0)``       the tensor, everything else × dim 0    orthonormal rows, filters of Conv
    ``Rows(blocks=H, columns=0)``   H blocks, everything else × the block  orthonormal rows of each head
    ``Rows(dim=0, columns=1)``      one per index of dim 0                 orthonormal rows of each expert
    ``Rows.whole(columns=c)``       with c = (1, 2, 3): out × in·k·k       columns of Conv, where out ≥ in·k·k
    ==============================  =====================================  ============================

    >>> import torch
    >>> from retract.manifolds import Rows
    >>> w = torch.ones(6, 4)
    >>> Rows(blocks=2).layout(w, event_ndim=1).split(w).shape
    torch.Size([2, 12])

    Example:
        >>> import torch, retract
        >>> model = torch.nn.ConvTranspose2d(8, 16, 3)  # its weight is (8, 16, 3, 3)
        >>> retract.declare(model, "weight", retract.manifolds.Sphere(), Rows(dim=1))
        >>> torch.linalg.vector_norm(model.weight, dim=(0, 2, 3)).allclose(torch.ones(16))
        True

    Raises:
        GeometryError: values that fit no parameter at all.
    """

    dim: int | tuple[int, ...] = 0
    """The dimensions whose indices enumerate points."""
    blocks: int | None = None
    """The number of points, each of consecutive indices of dim 0; with ``dim=0`` only."""
    groups: int = 1
    """The groups of a transposed convolution, which enumerate points together with dim 1; with ``dim=1`` only."""
    columns: int | tuple[int, ...] | None = None
    """On manifolds of matrices: the dimensions whose indices enumerate the columns of a matrix, in place of the last
    one. With blocks, dim 0 is that within a block."""

    def __post_init__(self) -> None:
        for name in ("dim", "columns"):
            dims = _tuple(getattr(self, name))
            if any(not isinstance(a, int) or a < 0 for a in dims) or len(set(dims)) != len(dims):
                raise GeometryError(f"{self!r}: {name} is one non-negative dimension or several different ones")
        if self.columns is not None:
            if not _tuple(self.columns):
                raise GeometryError(
                    f"{self!r}: columns is one dimension or several; a single column is a point of a manifold of vectors"
                )
            if self.groups > 1 or (self.blocks is None and set(_tuple(self.columns)) & set(self.dims)):
                raise GeometryError(
                    f"{self!r}: a dimension enumerates points or columns, not both; Rows.whole(columns=…) is one matrix"
                )
        if self.blocks is not None and (self.blocks < 1 or self.dim != 0):
            raise GeometryError(f"{self!r}: blocks is a number ≥ 1 of blocks of dim 0")
        if self.groups < 1 or (self.groups > 1 and self.dim != 1):
            raise GeometryError(f"{self!r}: groups is a number ≥ 1, with dim=1 only (transposed convolutions)")

    def __setstate__(self, state: dict[str, Any]) -> None:
        # `dim` was called `axis` in what earlier versions have pickled.
        self.__dict__.update({"dim" if name == "axis" else name: value for name, value in state.items()})

    def __repr__(self) -> str:
        # Without columns if there are none, as in state_dicts of earlier versions.
        columns = "" if self.columns is None else f", columns={self.columns!r}"
        return f"Rows(dim={self.dim!r}, blocks={self.blocks!r}, groups={self.groups!r}{columns})"

    @classmethod
    def whole(cls, columns: int | tuple[int, ...] | None = None) -> Rows:
        """The whole tensor as one point, a vector or, with `columns`, a matrix: ``Rows(blocks=1, columns=columns)``."""
        return cls(blocks=1, columns=columns)

    @property
    def dims(self) -> tuple[int, ...]:
        """`dim` as a tuple, in the order of the tensor."""
        return tuple(sorted(_tuple(self.dim)))

    def point_dims(self, ndim: int, event_ndim: int) -> tuple[int, ...]:
        """The dimensions of a parameter of `ndim` that enumerate points, without blocks."""
        if event_ndim != 1 and self.columns is None and self.dim == 0:
            return tuple(range(ndim - event_ndim))
        # A bias has one entry per output channel, whatever the dimension of the channels in its weight.
        return (0,) if ndim == 1 and self.dim == 1 else self.dims

    def error(self, shape: Sequence[int], manifold: Manifold) -> str | None:
        """Why a parameter of `shape` cannot be cut into points of `manifold`, or None if it can."""
        if manifold.event_ndim == 0:
            return None
        if self.blocks is not None and (not shape or shape[0] % self.blocks):
            return f"{self!r} does not divide dim 0 of shape {tuple(shape)}"
        if self.groups > 1 and (not shape or shape[0] % self.groups):
            return f"{self!r} does not divide dim 0 of shape {tuple(shape)}"
        if self.columns is not None and manifold.event_ndim != 2:
            return f"{self!r} has columns, and {manifold!r} is not a manifold of matrices; leave columns out"
        named = (*_tuple(self.columns), *(self.dims if self.blocks is None else ()))
        asks = manifold.event_ndim == 1 or self.columns is not None or self.dim != 0
        if asks and max(named, default=-1) >= len(shape):
            return f"{self!r} has a dimension that shape {tuple(shape)} does not have"
        if manifold.event_ndim > 1 and self.columns is None:
            inside = len(shape) - (0 if self.blocks is not None or self.dim == 0 else len(self.dims))
            exact = self.blocks is not None or self.dim != 0
            if inside < manifold.event_ndim or (exact and inside > manifold.event_ndim):
                remedy = "; columns=… selects the dimensions of its columns" if manifold.event_ndim == 2 else ""
                return f"{self!r} does not give shape {tuple(shape)} points of {manifold.event_ndim} dimensions{remedy}"
        layout = self.layout(torch.empty(tuple(shape), device="meta"), manifold.event_ndim)
        error = manifold.event_error(layout.event)
        if error and len(layout.event) == 2 and manifold.event_error(layout.event[::-1]) is None:
            return f"{error}: {self._transposed(len(shape))!r} does that"
        return error

    def _transposed(self, ndim: int) -> Rows:
        """The cut into transposed matrices: their columns are the rows of these."""
        inside = [a for a in range(ndim) if self.blocks is not None or a not in self.point_dims(ndim, 2)]
        columns = _tuple(self.columns) or (inside[-1],)
        others = tuple(a for a in inside if a not in columns)
        points = self.blocks if self.blocks is not None else None if self.point_dims(ndim, 2) else 1
        dim = 0 if points is not None else self.point_dims(ndim, 2)
        plain = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
        return Rows(plain, points, columns=others[0] if len(others) == 1 else others)

    def layout(self, part: Tensor, event_ndim: int) -> Layout:
        """The `Layout` of tensors with the shape and strides of `part`, for points of `event_ndim` dimensions."""
        return _layout(self, part.shape, part.stride(), event_ndim)

    def layouts(self, tensors: Sequence[Tensor], event_ndim: int) -> list[Layout]:
        """The layouts of several tensors."""
        return [self.layout(tensor, event_ndim) for tensor in tensors]


class Layout(NamedTuple):
    """`Rows` resolved for one shape and memory order."""

    blocks: int | None
    """The number of blocks into which axis 0 is cut first, if any."""
    order: tuple[int, ...] | None
    """The axes of points, then those of coordinates: of vectors in memory order, of matrices with columns last. None:
    unchanged."""
    arranged: tuple[int, ...]
    """The shape in that order."""
    axes: int
    """The number of arranged axes that enumerate points."""
    batch: tuple[int, ...]
    event: tuple[int, ...]
    scalar: tuple[int, ...]
    """The shape of scalars per point: that of the parameter with size 1 on the axes of coordinates, so that they
    broadcast against the parameter wherever an axis enumerates points."""

    @property
    def coordinates(self) -> int:
        """The number of arranged axes that are coordinates of a point."""
        return len(self.arranged) - self.axes

    def arrange(self, tensor: Tensor) -> Tensor:
        """`tensor` with its axes in `order`, a view."""
        if self.blocks is not None:
            tensor = tensor.unflatten(0, (self.blocks, -1))
        return tensor if self.order is None else tensor.permute(self.order)

    def split(self, tensor: Tensor) -> Tensor:
        """`tensor` as points, (*batch, *event); a view where one exists."""
        return self.arrange(tensor).reshape(self.batch + self.event)

    def write(self, tensor: Tensor, points: Tensor) -> None:
        """Write `points`, as `split` gives them, to `tensor`."""
        self.arrange(tensor).copy_(points.reshape(self.arranged))

    def as_matrix(self, tensor: Tensor) -> Tensor:
        """`tensor`, whose memory is a contiguous matrix of points, as that matrix: `split` in one operation."""
        (points,), (n,) = self.batch, self.event
        return tensor.as_strided((points, n), (n, 1))

    def multiply_(self, tensor: Tensor, factors: Tensor) -> None:
        """Multiply the points of `tensor` by `factors`, (points,), in place."""
        shape = self.arranged[: self.axes] + (1,) * self.coordinates
        self.arrange(tensor).mul_(factors.to(tensor).view(shape))

    def split_scalars(self, tensor: Tensor) -> Tensor:
        """Scalars per point from shape `scalar` to (*batch, 1…), a view."""
        return tensor.view(self.batch + (1,) * len(self.event))


AnyLayout = Layout | Grid | RestLayout


def gather(tensors: Sequence[Tensor], layouts: Sequence[AnyLayout]) -> Tensor:
    """The points of `tensors`, (*batch, *event): vectors as (points, n), with the parts of joint points side by side, and
    those of factors one below the other.

    A view where one exists. The layouts are those of the parameters, also for gradients and states with other strides.
    Half precision is converted to float32, in which geometry is computed. DTensors are gathered from all processes.
    """
    tensors = [whole(tensor) for tensor in tensors]
    if len(tensors) == 1:
        points = layouts[0].split(tensors[0])
    else:
        pieces = [layout.split(tensor) for tensor, layout in zip(tensors, layouts, strict=True)]
        points = torch.cat(pieces, -len(layouts[0].event))
    return points.float() if points.dtype in _HALF else points


def scatter_(points: Tensor, tensors: Sequence[Tensor], layouts: Sequence[AnyLayout]) -> None:
    """Write `points`, in the layout of `gather`, to `tensors`; views of them are up to date already.

    Finite values beyond the range of float16 become its largest number, so that a stored vector, such as the momentum of a
    row of PSI of large norm, stays finite.
    """
    if tensors[0].dtype == torch.float16 != points.dtype:
        largest = torch.finfo(torch.float16).max
        points = torch.where(points.isfinite(), points.clamp(-largest, largest), points)
    if len(tensors) == 1:
        parts: Sequence[Tensor] = (points,)
    else:
        parts = points.split([layout.event[0] for layout in layouts], -len(layouts[0].event))
    for part, tensor, layout in zip(parts, tensors, layouts, strict=True):
        if is_sharded(tensor):
            full = whole(tensor)
            layout.write(full, part)
            write_(tensor, full)
        elif part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            layout.write(tensor, part)


def overlaps(tensor: Tensor) -> bool:
    """Whether elements of `tensor` share memory, as in an expanded tensor."""
    reach, clear = 0, True
    axes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    for stride, size in axes:
        clear &= stride > reach
        reach += stride * (size - 1)
    if clear or tensor.numel() == 0:
        return False
    # Axes whose ranges overlap need not have elements in common.
    places = torch.zeros(1, dtype=torch.int64)
    for stride, size in axes:
        places = (places.unsqueeze(1) + stride * torch.arange(size)).flatten()
    return places.unique().numel() < tensor.numel()


@cache
def _layout(rows: Rows, shape: tuple[int, ...], stride: tuple[int, ...], event_ndim: int) -> Layout:
    ndim = len(shape)
    if event_ndim == 0:
        return Layout(None, None, shape, ndim, shape, (), shape)
    blocks = rows.blocks if rows.blocks is not None else rows.groups if rows.groups > 1 and ndim > 1 else None
    if blocks is not None:
        shape, stride = (blocks, shape[0] // blocks, *shape[1:]), (shape[0] // blocks * stride[0], *stride)
    if rows.blocks is not None:
        axes: tuple[int, ...] = (0,)
    elif blocks is not None:
        axes = (0, 2)
    else:
        axes = rows.point_dims(ndim, event_ndim)
    rest = [a for a in range(len(shape)) if a not in axes]
    columns = [a + (rows.blocks is not None) for a in _tuple(rows.columns)]
    if event_ndim == 1:
        rest.sort(key=lambda a: -stride[a])
    elif columns:
        rest = [*(a for a in rest if a not in columns), *columns]
    order = (*axes, *rest)
    arranged = tuple(shape[a] for a in order)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    if blocks is not None:
        del sizes[1]
    batch, event = arranged[: len(axes)], arranged[len(axes) :]
    if columns:
        event = prod(event[: -len(columns)]), prod(event[-len(columns) :])
    elif event_ndim == 1:
        batch, event = (prod(batch),), (prod(event),)
    return Layout(
        blocks,
        None if order == tuple(range(len(shape))) else order,
        arranged,
        len(axes),
        batch,
        event,
        tuple(sizes),
    )


def _tuple(axes: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return axes if isinstance(axes, tuple) else () if axes is None else (axes,)
