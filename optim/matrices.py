"""Points as contiguous matrices: what the fast paths work on, and how a parameter and its state become that.

A `Seat` is one point set in a step. `Matrices` are seats that are matrices where they lie; what costs time per parameter
and step is to make sure that nothing but addresses has changed since the last one, and it happens here, once for all
paths. `Loose` is a seat that has to be copied together, and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..manifolds import ScalingQuotient
from ..manifolds.rows import Layout, gather, scatter_
from .options import Options
from .points import PointSet, State, new_number
from .rules import Rule

__all__ = ["Kept", "Loose", "Matrices", "New", "Reading", "Seat", "column", "raise_versions", "real", "seat"]

_grad, _dtype = attrgetter("grad"), attrgetter("dtype")
_address, _size, _stride, _contiguous = Tensor.data_ptr, Tensor.numel, Tensor.stride, Tensor.is_contiguous


class New(NamedTuple):
    """What of the state of a point set is new in this step."""

    vectors: bool = False
    radius: bool = False


class Kept(NamedTuple):
    """Which optional state a point set has. Those that run together have the same, so that no list has gaps."""

    vectors: bool
    radius: bool
    square: bool


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

    @property
    def kept(self) -> Kept:
        """Which optional state there is."""
        return Kept(self.vectors is not None, self.radius is not None, self.square is not None)

    def enter(self, state: State, rule: Rule) -> None:
        """Put what is new into `state`."""
        if self.vectors is not None:
            for part, vector in zip(self.points.parts, self.vectors, strict=True):
                state[part].setdefault(rule.vectors[0], vector)
        first = state[self.points.parts[0]]
        if self.radius is not None:
            first.setdefault("radius", self.radius)
        if self.square is not None:
            first.setdefault(rule.scalars[0], self.square)

    def written(self) -> tuple[Sequence[Tensor], ...]:
        """What a step writes to: parameters, vectors and numbers."""
        numbers = [number for number in (self.radius, self.square) if number is not None]
        return self.points.parts, self.vectors or (), numbers

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
    name = next(iter(rule.vectors), "")
    needed, there = bool(rule.needs(options)), bool(name) and all(name in its for its in own)
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


def column(entries: Sequence[Tensor | None]) -> list[Tensor]:
    """`entries`, one per point set, or an empty list where no point set has one.

    Raises `ValueError` where only some have one: a shorter list would pair arrays with the wrong points.
    """
    there = [entry for entry in entries if entry is not None]
    if there and len(there) < len(entries):
        raise ValueError(f"{len(there)} of {len(entries)} point sets have this state; plan those without it apart")
    return there


def raise_versions(*written: Iterable[Tensor]) -> None:
    """Tell autograd of what a kernel has written to behind its back: graphs that have saved it must not run any more."""
    for tensors in written:
        torch.autograd.graph.increment_version(tensors)


class Matrices:
    """The parameters of `seats`, all of which lie as matrices, of one dtype on one device, with the same state `kept`."""

    def __init__(self, seats: Sequence[Seat], rule: Rule) -> None:
        self.params = [seat.points.parts[0] for seat in seats]
        self.layouts = [seat.layouts[0] for seat in seats]
        self.vectors = column([seat.vectors[0] if seat.vectors else None for seat in seats])
        self.radii = column([seat.radius for seat in seats])
        self.squares = column([seat.square for seat in seats])
        names = {rule.vectors[0]: self.vectors, "radius": self.radii, **dict.fromkeys(rule.scalars, self.squares)}
        self.state = [(name, tensors, list(map(_address, tensors))) for name, tensors in names.items() if tensors]
        """Name, arrays and their addresses, which stay."""
        self._absent = "" if self.vectors else rule.vectors[0]
        self._dtype, self._device = self.params[0].dtype, self.params[0].get_device()
        self._sizes, self._strides = list(map(_size, self.params)), list(map(_stride, self.params))
        self._plain = all(map(_contiguous, self.params))
        self._places: list[int] = []

    def read(self, own: Sequence[Mapping[str, Any]]) -> Reading | None:
        """Where parameters and gradients are now; None if anything else about them or their state, `own`, has changed.

        This is what a small tensor costs: a dozen calls each, all through `map`.
        """
        params = self.params
        grads: list[Any] = list(map(_grad, params))
        try:
            places, sources = list(map(_address, params)), list(map(_address, grads))
        except (TypeError, RuntimeError):  # no gradient, or a sparse one
            return None
        if list(map(_size, params)) != self._sizes or list(map(_stride, params)) != self._strides:
            return None
        if not all(map(is_, map(_dtype, grads), repeat(self._dtype))) or list(map(_size, grads)) != self._sizes:
            return None
        if not all(map(_contiguous, grads)) if self._plain else not all(map(_same_order, params, grads)):
            return None
        if self._device >= 0 and any(grad.get_device() != self._device for grad in grads):
            return None
        if places != self._places:
            # The same memory is the same dtype on the same device.
            if any(p.dtype != self._dtype or p.get_device() != self._device for p in params):
                return None
            self._places = places
        for name, tensors, stay in self.state:
            if not all(map(is_, [its.get(name) for its in own], tensors)) or list(map(_address, tensors)) != stay:
                return None
        if self._absent and any(self._absent in its for its in own):
            return None
        return Reading(places, sources, grads)


class Reading(NamedTuple):
    """Addresses of parameters and gradients, and the gradients."""

    params: list[int]
    sources: list[int]
    grads: list[Tensor]


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
        """Of the arrays, 0 for those that there are not, parameter, gradient, vector, radius, second moment."""
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
