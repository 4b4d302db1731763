"""What a step works on: parameters, gradients and state, as matrices of points.

An `Operand` is one point set in a step. `Arrays` are point sets that are stored as contiguous matrices; what costs time per
parameter and step is to make sure that nothing but addresses has changed since the last one, and it happens here, once for
all paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...manifolds import Rows, ScalingQuotient
from ...manifolds.parameters.rows import Layout, gather, scatter_
from ..kernels.lists import Stack
from ..options import Options
from ..rules import Rule
from .points import PointSet, State, new_number

__all__ = ["Arrays", "Operand", "operand", "raise_versions", "real"]

_grad, _dtype = attrgetter("grad"), attrgetter("dtype")
_address, _size, _stride, _contiguous = Tensor.data_ptr, Tensor.numel, Tensor.stride, Tensor.is_contiguous


class Operand(NamedTuple):
    """One point set in a step, with its state; what is new there enters the optimizer's state with the step."""

    points: PointSet
    grads: Sequence[Tensor]
    layouts: Sequence[Layout]
    vectors: Mapping[str, Sequence[Tensor]]
    """By name, one per part."""
    scalars: Mapping[str, Tensor]
    """By name, the held norm among them."""
    fresh: bool
    """Whether vectors that the rule needs are new."""
    unheld: bool
    """Whether a norm is to be held, and is not there yet."""

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

    def copied(self) -> Operand:
        """The same, of vectors, as contiguous matrices in float32 or better: (points, n), and (points, 1) for numbers."""
        x = gather(self.points.parts, self.layouts).contiguous()
        grad = gather(self.grads, self.layouts).to(x.dtype).contiguous()
        vectors = {name: [gather(parts, self.layouts).contiguous()] for name, parts in self.vectors.items()}
        scalars = {
            name: self.layouts[0].split_scalars(number).to(x.dtype).contiguous()
            for name, number in self.scalars.items()
        }
        points = PointSet(self.points.name, (x,), self.points.manifold, Rows())
        return self._replace(points=points, grads=[grad], layouts=points.layouts(), vectors=vectors, scalars=scalars)

    def write_back(self, copy: Operand) -> None:
        """Bring what a step has changed in a `copied` one home."""
        scatter_(copy.points.parts[0], self.points.parts, self.layouts)
        for name, (vector,) in copy.vectors.items():
            scatter_(vector, self.vectors[name], self.layouts)
        for name, number in copy.scalars.items():
            self.layouts[0].split_scalars(self.scalars[name]).copy_(number)


def real(dtype: torch.dtype) -> torch.dtype:
    """In which the geometry of a parameter of `dtype` is computed, and its numbers per point are kept."""
    return dtype if dtype == torch.float64 else torch.float32


def operand(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> Operand:
    """`points` in a step with `options`; reads `state` only."""
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
    fresh = any(name not in there for name in needed)
    return Operand(points, grads, layouts, vectors, scalars, fresh, held and "radius" not in own[0])


def raise_versions(written: Iterable[Tensor]) -> None:
    """Tell autograd of what a kernel has written to behind its back: graphs that have saved it must not run any more."""
    torch.autograd.graph.increment_version(written)


class Arrays:
    """The parameters, gradients and state of `operands`, all contiguous, of one dtype on one device, with the same state."""

    def __init__(self, operands: Sequence[Operand], rule: Rule) -> None:
        if len({each.kept for each in operands}) > 1:
            raise ValueError("some point sets have state that others do not have; plan them apart")
        self.params = [each.points.parts[0] for each in operands]
        self.grads: list[Any] = [each.grads[0] for each in operands]
        self.layouts = [each.layouts[0] for each in operands]
        self.vectors = {name: [each.vectors[name][0] for each in operands] for name in operands[0].vectors}
        self.scalars = {name: [each.scalars[name] for each in operands] for name in operands[0].scalars}
        self.addresses = {name: _addresses(tensors) for name, tensors in (self.vectors | self.scalars).items()}
        """Of the state, which stays where it is."""
        self.places, self.sources = _addresses(self.params), _addresses(self.grads)
        """Addresses of parameters and gradients."""
        self.written = [*self.params, *chain(*self.vectors.values(), *map(self.scalars.__getitem__, rule.scalars))]
        """What every step writes to; a norm that is held is written once."""
        self._absent = [name for name in rule.vectors if name not in self.vectors]
        self._dtype, self._device = self.params[0].dtype, self.params[0].get_device()
        self._sizes, self._strides = list(map(_size, self.params)), list(map(_stride, self.params))
        self._plain = all(map(_contiguous, self.params))
        self._stack: Stack | None = None

    def read(self, own: Sequence[Mapping[str, Any]]) -> bool:
        """Take over where parameters and gradients are now; False if anything else about them or their state, `own`, has changed.

        This is what a small tensor costs: a dozen calls each, all through `map`.
        """
        params, grads = self.params, list(map(_grad, self.params))
        try:
            places, self.sources = _addresses(params), _addresses(grads)
            state = [(list(map(itemgetter(name), own)), tensors) for name, tensors in self._state()]
        except (TypeError, RuntimeError, KeyError):  # no gradient, or a sparse one; state that is gone
            return False
        if list(map(_size, params)) != self._sizes or list(map(_stride, params)) != self._strides:
            return False
        if not all(map(is_, map(_dtype, grads), repeat(self._dtype))) or list(map(_size, grads)) != self._sizes:
            return False
        if not all(map(_contiguous, grads)) if self._plain else not all(map(_same_order, params, grads)):
            return False
        if self._device >= 0 and any(grad.get_device() != self._device for grad in grads):
            return False
        if not np.array_equal(places, self.places):
            # The same memory is the same dtype on the same device.
            if any(p.dtype != self._dtype or p.get_device() != self._device for p in params):
                return False
            self.places, self._stack = places, None
        for (found, tensors), stay in zip(state, self.addresses.values(), strict=True):
            if not all(map(is_, found, tensors)) or not np.array_equal(_addresses(tensors), stay):
                return False
        self.grads = grads
        return not any(name in its for name in self._absent for its in own)

    def stack(self) -> Stack:
        """All as matrices, which are views, made again when parameters have moved in memory."""
        grads = [layout.lying(grad) for layout, grad in zip(self.layouts, self.grads, strict=True)]
        if self._stack is None:
            vectors = {name: self._split(tensors) for name, tensors in self.vectors.items()}
            scalars = {
                name: [layout.split_scalars(a) for layout, a in zip(self.layouts, numbers, strict=True)]
                for name, numbers in self.scalars.items()
            }
            self._stack = Stack(self._split(self.params), grads, vectors, scalars)
        return self._stack._replace(g=grads)

    def _split(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [layout.split(tensor) for layout, tensor in zip(self.layouts, tensors, strict=True)]

    def _state(self) -> Iterable[tuple[str, list[Tensor]]]:
        return chain(self.vectors.items(), self.scalars.items())


def _addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.fromiter(map(_address, tensors), np.int64, len(tensors))


def _same_order(p: Tensor, other: Tensor) -> bool:
    """Whether `other` has its elements in the order of `p`."""
    return other.stride() == p.stride() or (p.is_contiguous() and other.is_contiguous())
