"""Points as contiguous matrices: what the fast paths work on, and how a parameter and its state become that.

A `Seat` is one point set in a step. `Matrices` are seats that are matrices where they lie; what costs time per parameter
and step is to make sure that nothing but addresses has changed since the last one, and it happens here, once for all
paths. `Loose` is a seat that has to be copied together, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..manifolds import ScalingQuotient
from ..manifolds.rows import Layout, gather, scatter_
from .options import Options
from .points import PointSet, State, new_number
from .rules import Rule

__all__ = ["Loose", "Matrices", "New", "Seat", "real", "seat"]


class New(NamedTuple):
    """What of the state of a point set is new in this step."""

    vectors: bool = False
    radius: bool = False


class Seat(NamedTuple):
    """One point set in a step, with its state; what is new there enters the optimizer's state with the step."""

    points: PointSet
    grads: Sequence[Tensor]
    layouts: Sequence[Layout]
    vectors: Sequence[Tensor] | None
    """One per part."""
    radius: Tensor | None
    square: Tensor | None
    new: New

    def enter(self, state: State, rule: Rule) -> None:
        """Put what is new into `state`."""
        for part, vector in zip(self.points.parts, self.vectors or (), strict=False):
            state[part].setdefault(rule.vectors[0], vector)
        first = state[self.points.parts[0]]
        if self.radius is not None:
            first.setdefault("radius", self.radius)
        if self.square is not None:
            first.setdefault(rule.scalars[0], self.square)

    @property
    def lies(self) -> bool:
        """Whether every array is a contiguous matrix of points where it stands, gradient and state like the parameter."""
        (p, *more), (grad, *_) = self.points.parts, self.grads
        if more or not _same_order(p, grad) or grad.dtype != p.dtype:
            return False
        matrix = self.layouts[0].split(p)
        if matrix.data_ptr() != p.data_ptr() or not matrix.is_contiguous():
            return False
        numbers = [number for number in (self.radius, self.square) if number is not None]
        precision = real(p.dtype) if self.layouts[0].event else p.dtype
        return all(_same_order(p, v) for v in self.vectors or ()) and all(
            number.is_contiguous() and number.dtype == precision for number in numbers
        )


def real(dtype: torch.dtype) -> torch.dtype:
    """In which the geometry of a parameter of `dtype` is computed, and its numbers per point are kept."""
    return dtype if dtype == torch.float64 else torch.float32


def seat(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> Seat:
    """The seat of `points` in a step with `options`; reads `state` only."""
    layouts, first = points.layouts(), points.parts[0]
    own: Sequence[Mapping[str, Any]] = [state.get(part, {}) for part in points.parts]
    name = rule.vectors[0]
    needed, there = bool(rule.needs(options)), all(name in its for its in own)
    vectors = None
    if needed or there:
        vectors = [
            its[name] if name in its else torch.zeros_like(part, memory_format=torch.preserve_format)
            for part, its in zip(points.parts, own, strict=True)
        ]
    held = isinstance(points.manifold, ScalingQuotient) and options["radius"] == "hold"
    numbers = {
        name: own[0][name] if name in own[0] else new_number(name, rule, layouts[0], first)
        for name in (*rule.scalars, *(["radius"] if held else []))
    }
    square = numbers[rule.scalars[0]] if rule.scalars else None
    new = New(needed and not there, held and "radius" not in own[0])
    return Seat(points, grads, layouts, vectors, numbers.get("radius"), square, new)


class Matrices:
    """The parameters of `seats`, all of which lie as matrices, of one dtype on one device."""

    def __init__(self, seats: Sequence[Seat], rule: Rule) -> None:
        self.params = [seat.points.parts[0] for seat in seats]
        self.layouts = [seat.layouts[0] for seat in seats]
        self.vectors = [seat.vectors[0] for seat in seats if seat.vectors]
        self.radii = [seat.radius for seat in seats if seat.radius is not None]
        self.squares = [seat.square for seat in seats if seat.square is not None]
        self._dtype, self._device = self.params[0].dtype, self.params[0].get_device()
        self._names = (rule.vectors[0], rule.scalars[0] if rule.scalars else "")
        self._entries: list[tuple[Tensor, torch.Size, Any, Tensor | None, Tensor | None, Tensor | None]] = [
            (
                p,
                p.shape,
                None if p.is_contiguous() else p.stride(),
                s.vectors[0] if s.vectors else None,
                s.radius,
                s.square,
            )
            for p, s in zip(self.params, seats, strict=True)
        ]

    def read(self, state: State) -> tuple[list[int], list[Tensor]] | None:
        """The addresses of parameter, gradient, vector, radius and second moment (0 for none), one parameter after the
        other, and the gradients; None if anything but an address is no longer what it was."""
        dtype, device, strided = (
            self._dtype,
            self._device,
            torch.strided,
        )  # locals: this loop is what a small tensor costs
        vector_name, square_name = self._names
        cells: list[int] = []
        grads: list[Tensor] = []
        for p, shape, stride, vector, radius, square in self._entries:
            g = p.grad
            if g is None or g.layout is not strided or g.dtype is not dtype or p.dtype is not dtype:
                return None
            if p.shape != shape or g.shape != shape or p.get_device() != device or g.get_device() != device:
                return None
            if stride is None:
                if not (p.is_contiguous() and g.is_contiguous()):
                    return None
            elif p.stride() != stride or g.stride() != stride:
                return None
            its = state[p]
            v = r = s = 0
            found: Any = its.get(vector_name)
            if found is not vector:
                return None
            if vector is not None:
                if vector.get_device() != device or vector.dtype is not dtype:
                    return None
                v = vector.data_ptr()
            if radius is not None:
                found = its.get("radius")
                if found is not radius or radius.get_device() != device:
                    return None
                r = radius.data_ptr()
            if square is not None:
                found = its.get(square_name)
                if found is not square or square.get_device() != device:
                    return None
                s = square.data_ptr()
            cells += (p.data_ptr(), g.data_ptr(), v, r, s)
            grads.append(g)
        return cells, grads


class Loose:
    """The arrays of a seat as contiguous matrices, copies where they are not: (points, n), and (points, 1) per point."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        points, layouts = seat.points, seat.layouts
        self.x = gather(points.parts, layouts).contiguous()
        self.grad = gather(seat.grads, layouts).to(self.x.dtype).contiguous()
        self.vector = gather(seat.vectors, layouts).contiguous() if seat.vectors else None
        self.radius, self.square = (
            None if number is None else layouts[0].split_scalars(number).to(self.x.dtype).contiguous()
            for number in (seat.radius, seat.square)
        )

    def addresses(self) -> list[int]:
        """Of the arrays, 0 for those that there are not, in the order of `Matrices.read`."""
        arrays = (self.x, self.grad, self.vector, self.radius, self.square)
        return [0 if array is None else array.data_ptr() for array in arrays]

    def write_back(self) -> None:
        """To where the seat has them."""
        parts, layouts = self._seat.points.parts, self._seat.layouts
        scatter_(self.x, parts, layouts)
        if self.vector is not None:
            assert self._seat.vectors is not None
            scatter_(self.vector, self._seat.vectors, layouts)
        for number, stored in ((self.radius, self._seat.radius), (self.square, self._seat.square)):
            if number is not None and stored is not None:
                layouts[0].split_scalars(stored).copy_(number)


def _same_order(p: Tensor, other: Tensor) -> bool:
    """Whether `other` has its elements in the order of `p`."""
    return other.stride() == p.stride() or (p.is_contiguous() and other.is_contiguous())
