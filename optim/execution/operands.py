"""What a step works on: parameters, gradients and state, as matrices of points.

A `Seat` is one point set in a step. `Matrices` are point sets that are stored as contiguous matrices; what costs time per
parameter and step is to make sure that nothing but addresses has changed since the last one, and it happens here, once for
all paths. `Copies` are the arrays of a point set that has to be copied together, and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...manifolds import ScalingQuotient
from ...manifolds.parameters.rows import Layout, gather, scatter_
from ..options import Options
from ..rules import Rule
from .points import PointSet, State, new_number

__all__ = ["Copies", "Matrices", "New", "Reading", "Seat", "raise_versions", "real", "seat"]

_grad, _dtype = attrgetter("grad"), attrgetter("dtype")
_address, _size, _stride, _contiguous = Tensor.data_ptr, Tensor.numel, Tensor.stride, Tensor.is_contiguous


class New(NamedTuple):
    """What of the state of a point set is new in this step."""

    vectors: bool = False
    radius: bool = False


class Seat(NamedTuple):
    """One point set in a step, with its state; what is new there enters the optimizer's state with the step."""

    points: PointSet
    grads: Sequence[Tensor]
    layouts: Sequence[Layout]
    vectors: Mapping[str, Sequence[Tensor]]
    """By name, one per part."""
    scalars: Mapping[str, Tensor]
    """By name, the held norm among them."""
    new: New

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of its state. Point sets that run together have the same, so that no list has gaps."""
        return (*self.vectors, *self.scalars)

    def enter(self, state: State) -> None:
        """Put what is new into `state`."""
        for name, vectors in self.vectors.items():
            for part, vector in zip(self.points.parts, vectors, strict=True):
                state[part].setdefault(name, vector)
        for name, number in self.scalars.items():
            state[self.points.parts[0]].setdefault(name, number)

    def written(self) -> Iterable[Tensor]:
        """What a step writes to: parameters, vectors and numbers."""
        return chain(self.points.parts, *self.vectors.values(), self.scalars.values())

    @property
    def contiguous(self) -> bool:
        """Whether every array is stored as a contiguous matrix of points, gradient and state like the parameter."""
        (p, *more), (grad, *_) = self.points.parts, self.grads
        if more or not _same_order(p, grad) or grad.dtype != p.dtype:
            return False
        matrix = self.layouts[0].split(p)
        if matrix.data_ptr() != p.data_ptr() or not matrix.is_contiguous():
            return False
        precision = real(p.dtype) if self.layouts[0].event else p.dtype
        return all(_same_order(p, v) for v in chain(*self.vectors.values())) and all(
            number.is_contiguous() and number.dtype == precision for number in self.scalars.values()
        )


def real(dtype: torch.dtype) -> torch.dtype:
    """In which the geometry of a parameter of `dtype` is computed, and its numbers per point are kept."""
    return dtype if dtype == torch.float64 else torch.float32


def seat(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> Seat:
    """The seat of `points` in a step with `options`; reads `state` only."""
    layouts, first = points.layouts(), points.parts[0]
    own: Sequence[Mapping[str, Any]] = [state.get(part, {}) for part in points.parts]
    needed, there = rule.needs(options), [name for name in rule.vectors if all(name in its for its in own)]
    vectors = {
        name: [
            its[name] if name in its else torch.zeros_like(part, memory_format=torch.preserve_format)
            for part, its in zip(points.parts, own, strict=True)
        ]
        for name in rule.vectors
        if name in needed or name in there
    }
    held = isinstance(points.manifold, ScalingQuotient) and options["radius"] == "hold"
    scalars = {
        name: own[0][name] if name in own[0] else new_number(name, rule, layouts[0], first)
        for name in (*rule.scalars, *(["radius"] if held else []))
    }
    new = New(any(name not in there for name in needed), held and "radius" not in own[0])
    return Seat(points, grads, layouts, vectors, scalars, new)


def raise_versions(written: Iterable[Tensor]) -> None:
    """Tell autograd of what a kernel has written to behind its back: graphs that have saved it must not run any more."""
    torch.autograd.graph.increment_version(written)


class Matrices:
    """The parameters of `seats`, all contiguous, of one dtype on one device, with the same state `kept`."""

    def __init__(self, seats: Sequence[Seat], rule: Rule) -> None:
        if len({seat.kept for seat in seats}) > 1:
            raise ValueError("some point sets have state that others do not have; plan them apart")
        self.params = [seat.points.parts[0] for seat in seats]
        self.layouts = [seat.layouts[0] for seat in seats]
        self.vectors = {name: [seat.vectors[name][0] for seat in seats] for name in seats[0].vectors}
        self.scalars = {name: [seat.scalars[name] for seat in seats] for name in seats[0].scalars}
        self.state = [
            (name, tensors, list(map(_address, tensors))) for name, tensors in (self.vectors | self.scalars).items()
        ]
        """Name, arrays and their addresses, which stay."""
        self.written = [*self.params, *chain(*self.vectors.values(), *self.scalars.values())]
        self._absent = [name for name in rule.vectors if name not in self.vectors]
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
        if any(name in its for name in self._absent for its in own):
            return None
        return Reading(places, sources, grads)


class Reading(NamedTuple):
    """Addresses of parameters and gradients, and the gradients."""

    params: list[int]
    sources: list[int]
    grads: list[Tensor]


class Copies:
    """The arrays of a seat as contiguous matrices, copies where they are not: (points, n), and (points, 1) per point."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        points, layouts = seat.points, seat.layouts
        self.x = gather(points.parts, layouts).contiguous()
        self.grad = gather(seat.grads, layouts).to(self.x.dtype).contiguous()
        self.vectors = {name: gather(vectors, layouts).contiguous() for name, vectors in seat.vectors.items()}
        self.scalars = {
            name: layouts[0].split_scalars(number).to(self.x.dtype).contiguous()
            for name, number in seat.scalars.items()
        }

    def write_back(self) -> None:
        """To where the seat has them."""
        parts, layouts = self._seat.points.parts, self._seat.layouts
        scatter_(self.x, parts, layouts)
        for name, vector in self.vectors.items():
            scatter_(vector, self._seat.vectors[name], layouts)
        for name, number in self.scalars.items():
            layouts[0].split_scalars(self._seat.scalars[name]).copy_(number)


def _same_order(p: Tensor, other: Tensor) -> bool:
    """Whether `other` has its elements in the order of `p`."""
    return other.stride() == p.stride() or (p.is_contiguous() and other.is_contiguous())
