"""`Rows`: how a parameter is cut into points. The only place that reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Manifold
from .errors import GeometryError
from .shards import is_sharded, whole, write_

__all__ = ["Layout", "Rows", "gather", "overlaps", "scatter_"]

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rows:
    """Which axes of a parameter enumerate points; everything else are the coordinates of one point.

    ==========================  ==============================  ===========================================
    value                       points                          for
    ==========================  ==============================  ===========================================
    ``Rows()``                  one per index of axis 0         Linear, Conv in front of BatchNorm
    ``Rows(axis=1, groups=g)``  one per output channel          ConvTranspose with g groups
    ``Rows(blocks=G)``          G consecutive blocks of axis 0  GroupNorm, the heads of QK-norm
    ``Rows(blocks=1)``          the whole tensor                LayerNorm, RMSNorm
    ``Rows(axis=(0, 1))``       one per pair of indices         vectors along the axes that remain
    ==========================  ==============================  ===========================================

    For manifolds of vectors the coordinates are flattened in memory order, which makes the result a view
    for channels_last weights too. A matrix manifold keeps the last `event_ndim` axes as they are, and the
    axes in front of them enumerate points. For ``Euclidean(0)`` every entry is a point.

    Raises `GeometryError` for values that fit no parameter at all.
    """

    axis: int | tuple[int, ...] = 0
    """The axes whose indices enumerate points."""
    blocks: int | None = None
    """How many points, each of consecutive indices of axis 0; with ``axis=0`` only."""
    groups: int = 1
    """Of a transposed convolution, which enumerate points together with axis 1; with ``axis=1`` only."""

    def __post_init__(self) -> None:
        axes = self.axes
        if any(not isinstance(a, int) or a < 0 for a in axes) or len(set(axes)) != len(axes):
            raise GeometryError(f"{self!r}: axis is one non-negative axis or several different ones")
        if self.blocks is not None and (self.blocks < 1 or self.axis != 0):
            raise GeometryError(f"{self!r}: blocks is a number ≥ 1 of blocks of axis 0")
        if self.groups < 1 or (self.groups > 1 and self.axis != 1):
            raise GeometryError(f"{self!r}: groups is a number ≥ 1 and goes with axis=1 (transposed convolutions)")

    @property
    def axes(self) -> tuple[int, ...]:
        """`axis` as a tuple."""
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def error(self, shape: Sequence[int], manifold: Manifold) -> str | None:
        """Why a parameter of `shape` cannot be cut into points of `manifold`, or None if it can."""
        if manifold.event_ndim == 0:
            return None
        if self.blocks is not None and (not shape or shape[0] % self.blocks):
            return f"{self!r} does not divide axis 0 of shape {tuple(shape)}"
        if self.groups > 1 and (not shape or shape[0] % self.groups):
            return f"{self!r} does not divide axis 0 of shape {tuple(shape)}"
        if manifold.event_ndim == 1 and self.blocks is None and max(self.axes, default=-1) >= len(shape):
            return f"{self!r} names an axis that shape {tuple(shape)} does not have"
        if manifold.event_ndim > 1 and (self.axis != 0 or len(shape) + (self.blocks is not None) < manifold.event_ndim):
            return f"{self!r} does not give shape {tuple(shape)} points of {manifold.event_ndim} dimensions"
        return manifold.event_error(self.layout(torch.empty(tuple(shape), device="meta"), manifold.event_ndim).event)

    def layout(self, part: Tensor, event_ndim: int) -> Layout:
        """How tensors shaped and laid out like `part` are cut into points of `event_ndim` dimensions."""
        return _layout(self, part.shape, part.stride(), event_ndim)


class Layout(NamedTuple):
    """`Rows` worked out for one shape and memory order."""

    blocks: int | None
    """Number of blocks that axis 0 is cut into first, if any."""
    order: tuple[int, ...] | None
    """Axes of the points, then those of the coordinates as they lie in memory; None: as they stand."""
    arranged: tuple[int, ...]
    """Shape in that order."""
    axes: int
    """How many of those axes enumerate points."""
    batch: tuple[int, ...]
    event: tuple[int, ...]
    scalar: tuple[int, ...]
    """Shape of one number per point, with the parameter's number of dimensions and size 1 on the axes of the
    coordinates, so that it broadcasts against the parameter wherever an axis enumerates points."""

    @property
    def coordinates(self) -> int:
        """How many of the arranged axes are coordinates of a point."""
        return len(self.arranged) - self.axes

    def arrange(self, tensor: Tensor) -> Tensor:
        """`tensor` with its axes in order, a view."""
        if self.blocks is not None:
            tensor = tensor.unflatten(0, (self.blocks, -1))
        return tensor if self.order is None else tensor.permute(self.order)

    def split(self, tensor: Tensor) -> Tensor:
        """`tensor` as points, (*batch, *event); a view where one exists."""
        return self.arrange(tensor).reshape(self.batch + self.event)

    def lying(self, tensor: Tensor) -> Tensor:
        """As `split`, in one operation, for a tensor whose memory is the contiguous matrix of points."""
        (points,), (n,) = self.batch, self.event
        return tensor.as_strided((points, n), (n, 1))

    def split_scalars(self, tensor: Tensor) -> Tensor:
        """One number per point, from `scalar` shape to (*batch, 1…), a view."""
        return tensor.view(self.batch + (1,) * len(self.event))


def gather(tensors: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
    """The points that `tensors` hold together: (points, n), or (*batch, *event) for other than vectors.

    A view where one exists. The layouts are those of the parameters, so that gradients and states laid out
    differently line up with them. Several tensors are the parts of joint points, side by side. Half
    precision comes as float32: geometry computes in float32 or better. DTensors come whole, from all processes.
    """
    tensors = [whole(tensor) for tensor in tensors]
    if len(tensors) == 1:
        points = layouts[0].split(tensors[0])
    else:
        points = torch.cat([layout.split(tensor) for tensor, layout in zip(tensors, layouts, strict=True)], -1)
    return points.float() if points.dtype in _HALF else points


def scatter_(points: Tensor, tensors: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
    """Write `points`, as `gather` gave them, back; what is a view of its tensor is there already."""
    if len(tensors) == 1:
        parts: Sequence[Tensor] = (points,)
    else:
        parts = points.split([layout.event[0] for layout in layouts], -1)
    for part, tensor, layout in zip(parts, tensors, layouts, strict=True):
        if is_sharded(tensor):
            full = part.new_empty(tensor.shape)
            layout.arrange(full).copy_(part.reshape(layout.arranged))
            write_(tensor, full)
        elif part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            layout.arrange(tensor).copy_(part.reshape(layout.arranged))


def overlaps(tensor: Tensor) -> bool:
    """Whether elements of `tensor` share memory, as those of an expanded one do."""
    reach, clear = 0, True
    axes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    for stride, size in axes:
        clear &= stride > reach
        reach += stride * (size - 1)
    if clear or tensor.numel() == 0:
        return False
    # Axes that reach into each other may still miss each other's elements.
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
    if event_ndim > 1:
        batch, event = shape[: len(shape) - event_ndim], shape[len(shape) - event_ndim :]
        scalar = (*batch, *(1,) * (ndim - len(batch)))
        return Layout(blocks, None, shape, len(batch), batch, event, scalar)
    if rows.blocks is not None:
        axes: tuple[int, ...] = (0,)
    elif blocks is not None:
        axes = (0, 2)
    else:
        # A bias has one entry per output channel, wherever its weight keeps the channels.
        axes = (0,) if ndim == 1 and rows.axis == 1 else rows.axes
    rest = sorted((a for a in range(len(shape)) if a not in axes), key=lambda a: -stride[a])
    order = (*axes, *rest)
    arranged = tuple(shape[a] for a in order)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    if blocks is not None:
        del sizes[1]
    return Layout(
        blocks,
        None if order == tuple(range(len(shape))) else order,
        arranged,
        len(axes),
        (prod(arranged[: len(axes)]),),
        (prod(arranged[len(axes) :]),),
        tuple(sizes),
    )
