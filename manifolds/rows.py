"""`Rows`: how a parameter is cut into points. The only place that reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .base import Manifold
from .errors import GeometryError

__all__ = ["Rows"]

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
    blocks: int | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        axes = self._axes
        if any(not isinstance(a, int) or a < 0 for a in axes) or len(set(axes)) != len(axes):
            raise GeometryError(f"{self!r}: axis is one non-negative axis or several different ones")
        if self.blocks is not None and (self.blocks < 1 or self.axis != 0):
            raise GeometryError(f"{self!r}: blocks is a number ≥ 1 of blocks of axis 0")
        if self.groups < 1 or (self.groups > 1 and self.axis != 1):
            raise GeometryError(f"{self!r}: groups is a number ≥ 1 and goes with axis=1 (transposed convolutions)")

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def error(self, shape: Sequence[int], manifold: Manifold) -> str | None:
        """Why a parameter of `shape` cannot be cut into points of `manifold`, or None if it can."""
        if manifold.event_ndim == 0:
            return None
        if self.blocks is not None and (not shape or shape[0] % self.blocks):
            return f"{self!r} does not divide axis 0 of shape {tuple(shape)}"
        if self.groups > 1 and (not shape or shape[0] % self.groups):
            return f"{self!r} does not divide axis 0 of shape {tuple(shape)}"
        if manifold.event_ndim == 1 and self.blocks is None and max(self._axes, default=-1) >= len(shape):
            return f"{self!r} names an axis that shape {tuple(shape)} does not have"
        if manifold.event_ndim > 1 and (self.axis != 0 or len(shape) + (self.blocks is not None) < manifold.event_ndim):
            return f"{self!r} does not give shape {tuple(shape)} points of {manifold.event_ndim} dimensions"
        return manifold.event_error(self.point_shape(shape, manifold.event_ndim)[1])

    def point_shape(self, shape: Sequence[int], event_ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(batch, event) of `split`'s result for a parameter of `shape`."""
        meta = self._arrange(torch.empty(tuple(shape), device="meta"), None, event_ndim)
        batch, event = tuple(meta[0].shape[: meta[1]]), tuple(meta[0].shape[meta[1] :])
        return ((prod(batch),), (prod(event),)) if event_ndim == 1 else (batch, event)

    def scalar_shape(self, shape: Sequence[int], event_ndim: int) -> tuple[int, ...]:
        """Shape of one number per point that broadcasts against the parameter as far as the cut allows:
        the parameter's number of dimensions, size 1 on the axes of the coordinates."""
        if event_ndim == 0:
            return tuple(shape)
        if self.blocks is not None:
            return (self.blocks,) + (1,) * (len(shape) - 1)
        if event_ndim > 1:
            return tuple(shape[: len(shape) - event_ndim]) + (1,) * event_ndim
        axes = self._part_axes(len(shape))
        kept = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        if self.groups > 1 and 1 in axes:
            kept[0] = self.groups
        return tuple(kept)

    def split(self, tensor: Tensor, event_ndim: int, like: Tensor | None = None) -> Tensor:
        """`tensor` as points (points, n), or (*batch, *event) for other than vectors; a view where one exists.

        `like` is the parameter whose memory order decides the order of coordinates inside a point
        (default: `tensor`), so that a gradient or a state laid out differently still lines up.
        """
        arranged, batch_ndim = self._arrange(tensor, like, event_ndim)
        if event_ndim != 1:
            return arranged
        return arranged.reshape(prod(arranged.shape[:batch_ndim]), prod(arranged.shape[batch_ndim:]))

    def split_scalars(self, tensor: Tensor, shape: Sequence[int], event_ndim: int) -> Tensor:
        """One number per point of a parameter of `shape`, from `scalar_shape` to (points, 1) or (*batch, 1…)."""
        batch, event = self.point_shape(shape, event_ndim)
        return tensor.view(batch + (1,) * len(event))

    def gather(self, tensors: Sequence[Tensor], like: Sequence[Tensor], event_ndim: int) -> Tensor:
        """The parts of joint points side by side, (points, Σ nₖ); one part as `split` gives it.

        Half-precision parts come as float32: geometry computes in float32 or better.
        """
        parts = [self.split(t, event_ndim, l) for t, l in zip(tensors, like, strict=True)]
        points = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return points.float() if points.dtype in _HALF else points

    def scatter_(self, points: Tensor, tensors: Sequence[Tensor], like: Sequence[Tensor], event_ndim: int) -> None:
        """Write `points`, as `gather` gave them, back; what is a view of its tensor is there already."""
        start = 0
        for tensor, reference in zip(tensors, like, strict=True):
            arranged, batch_ndim = self._arrange(tensor, reference, event_ndim)
            part = points
            if len(tensors) > 1:
                size = prod(arranged.shape[batch_ndim:])
                part = points[:, start : start + size]
                start += size
            if part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                arranged.copy_(part.reshape(arranged.shape))

    def _part_axes(self, ndim: int) -> tuple[int, ...]:
        # A bias has one entry per output channel, wherever its weight keeps the channels.
        return (0,) if ndim == 1 else self._axes

    def _arrange(self, tensor: Tensor, like: Tensor | None, event_ndim: int) -> tuple[Tensor, int]:
        """A view with the axes of the points in front and those of the coordinates behind, and the number
        of the former."""
        reference = tensor if like is None else like
        if event_ndim == 0:
            return tensor, tensor.ndim
        if self.blocks is not None:
            tensor, reference = (t.unflatten(0, (self.blocks, -1)) for t in (tensor, reference))
            axes: tuple[int, ...] = (0,)
        elif self.groups > 1 and tensor.ndim > 1:
            tensor, reference = (t.unflatten(0, (self.groups, -1)) for t in (tensor, reference))
            axes = (0, 2)
        else:
            axes = self._part_axes(tensor.ndim)
        if event_ndim > 1:
            return tensor, tensor.ndim - event_ndim
        rest = [a for a in range(tensor.ndim) if a not in axes]
        rest.sort(key=lambda a: -reference.stride(a))
        return tensor.permute(*axes, *rest), len(axes)
