"""The operands of a step: parameters, gradients and state, as matrices of points.

An `Operand` is one point set in a step. `Arrays` are point sets that are stored as contiguous matrices. Most of the time per
parameter and step goes into checking that nothing but addresses has changed since the last step; that is here, once for all
paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from math import prod
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...manifolds import Rows
from ...manifolds.parameters.rows import Layout, gather, scatter_
from ..kernels.lists import Stack
from ..options import Options, holds
from ..rules import Rule
from .points import PointSet, State, new_scalar, scalar_dtype

__all__ = [
    "Arrays",
    "Operand",
    "has_rows_of_matrices",
    "make_operand",
    "matrix_of",
    "raise_versions",
    "real",
    "stack_of",
]

_grad, _dtype = attrgetter("grad"), attrgetter("dtype")
_address, _size, _stride, _contiguous = Tensor.data_ptr, Tensor.numel, Tensor.stride, Tensor.is_contiguous


class Operand(NamedTuple):
    """One point set in a step, with its state; new state is added to the optimizer's by `add_to`."""

    points: PointSet
    grads: Sequence[Tensor]
    layouts: Sequence[Layout]
    vectors: Mapping[str, Sequence[Tensor]]
    """State vectors by name, one tensor per part."""
    scalars: Mapping[str, Tensor]
    """Scalars per point by name, with the norm to hold."""
    fresh: bool
    """Whether vectors that the rule needs are new."""
    radius_unset: bool
    """Whether the norm to hold is set by this step."""
    radius: float | None
    """The norm to hold, if the option `radius` is a number."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state; no list of a plan has gaps."""
        return (*self.vectors, *self.scalars)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all point sets of a plan have in common."""
        part = self.points.parts[0]
        return self.points.manifold, part.dtype, part.device, len(self.layouts), self.state_names

    def add_to(self, state: State) -> None:
        """Add new entries to `state`, and store a norm that is given as a number: it may have been given in the middle of a run."""
        for name, vectors in self.vectors.items():
            for part, vector in zip(self.points.parts, vectors, strict=True):
                state[part].setdefault(name, vector)
        for name, scalar in self.scalars.items():
            state[self.points.parts[0]].setdefault(name, scalar)
        if self.radius is not None:
            self.scalars["radius"].fill_(self.radius)

    @property
    def contiguous(self) -> bool:
        """Whether every array is stored as a contiguous matrix of points, gradient and state like the parameter."""
        (p, *more), (grad, *_) = self.points.parts, self.grads
        if more or not _same_order(p, grad) or grad.dtype != p.dtype:
            return False
        matrix = self.layouts[0].split(p)
        if matrix.data_ptr() != p.data_ptr() or not matrix.is_contiguous():
            return False
        return all(_same_order(p, v) for v in chain(*self.vectors.values())) and all(
            number.is_contiguous() and number.dtype == scalar_dtype(self.layouts[0], p)
            for number in self.scalars.values()
        )

    @property
    def strided(self) -> bool:
        """Whether the points are one view of their parameter that is not contiguous."""
        p = self.points.parts[0]
        matrix = self.layouts[0].split(p)
        return len(self.layouts) == 1 and matrix.data_ptr() == p.data_ptr() and not matrix.is_contiguous()

    def as_matrices(self, *, joined: bool) -> Operand:
        """The operand as matrices in float32 or better: (points, n), and (points, 1) for scalars; for vectors only.

        They are contiguous with the parts `joined` in one matrix; otherwise each part is a matrix, a view where one exists.
        """
        size = len(self.layouts) if joined else 1

        def matrices(tensors: Sequence[Tensor]) -> list[Tensor]:
            starts = range(0, len(tensors), size)
            found = [gather(tensors[i : i + size], self.layouts[i : i + size]) for i in starts]
            return [matrix.contiguous() for matrix in found] if joined else found

        x, layout = matrices(self.points.parts), self.layouts[0]
        points = PointSet(self.points.name, tuple(x), self.points.manifold, Rows())
        # Dot products of arrays with different strides take several times as long.
        grads = [_like(part, grad) for part, grad in zip(x, matrices(self.grads), strict=True)]
        vectors = {name: matrices(parts) for name, parts in self.vectors.items()}
        scalars = {name: layout.split_scalars(a).to(x[0].dtype).contiguous() for name, a in self.scalars.items()}
        layouts = points.rows.layouts(points.parts, 1)
        return self._replace(points=points, grads=grads, layouts=layouts, vectors=vectors, scalars=scalars)

    def write_back(self, copy: Operand) -> None:
        """Write the results in `copy`, made by `as_matrices`, to the parameter and its state."""
        size = len(self.layouts) // len(copy.layouts)
        for name, tensors in {"": self.points.parts, **self.vectors}.items():
            for i, result in enumerate(copy.vectors[name] if name else copy.points.parts):
                part = slice(i * size, (i + 1) * size)
                scatter_(result, tensors[part], self.layouts[part])
        for name, scalar in copy.scalars.items():
            self.layouts[0].split_scalars(self.scalars[name]).copy_(scalar)


def real(dtype: torch.dtype) -> torch.dtype:
    """The dtype of computations and of scalars per point for a parameter of `dtype`."""
    return dtype if dtype == torch.float64 else torch.float32


def make_operand(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> Operand:
    """The operand of `points` in a step with `options`; `state` is only read."""
    layouts, first = layouts_of(points, options), points.parts[0]
    stored: Sequence[Mapping[str, Any]] = [state.get(part, {}) for part in points.parts]
    needed = rule.needs(options)
    existing = [name for name in rule.stored if all(name in entry for entry in stored)]
    vectors = {
        name: [
            entry[name] if name in entry else torch.zeros_like(part, memory_format=torch.preserve_format)
            for part, entry in zip(points.parts, stored, strict=True)
        ]
        for name in rule.stored
        if name in needed or name in existing
    }
    held = holds(points.manifold, options)
    scalars = {
        name: stored[0][name] if name in stored[0] else new_scalar(name, rule, layouts[0], first)
        for name in (*rule.scalars, *(["radius"] if held else []))
    }
    fresh = any(name not in existing for name in needed)
    radius = options["radius"] if held and options["radius"] != "hold" else None
    unset = held and radius is None and "radius" not in stored[0]
    return Operand(points, grads, layouts, vectors, scalars, fresh, unset, radius)


def layouts_of(points: PointSet, options: Options) -> list[Layout]:
    """The layouts of the parts; under a shape coordinates are in the order of dimensions, not of memory, so that those of a point
    are a matrix."""
    ndim, parts = points.manifold.event_ndim, points.parts
    if options.get("shape") is not None:
        parts = tuple(torch.empty(part.shape, device="meta") for part in parts)
    return points.rows.layouts(parts, ndim)


def has_rows_of_matrices(points: PointSet) -> bool:
    """Whether the points are rows of matrices, and no matrices themselves."""
    return points.manifold.event_ndim == 1 and points.rows.blocks is None


def matrix_of(points: PointSet) -> tuple[int, int] | None:
    """The shape of the matrices that `points` are, or are the rows of: a block or a whole tensor is one matrix, its first dimension
    of more than one index by all others. None if there are none."""
    if points.slices is not None and points.manifold.event_ndim != 2:
        return None
    layout: Any = points.layouts()[0]
    if points.manifold.event_ndim != 1:
        return layout.event if points.manifold.event_ndim == 2 else None
    blocks = points.rows.blocks
    if blocks is None:
        width = sum(each.event[0] for each in points.layouts())
        return (layout.arranged[layout.axes - 1], width) if points.rows.groups == 1 else None
    sides = [points.parts[0].shape[0] // blocks, *points.parts[0].shape[1:]]
    while len(sides) > 2 and sides[0] == 1:
        sides = sides[1:]
    return (sides[0], prod(sides[1:])) if len(sides) > 1 and len(points.parts) == 1 else None


def stack_of(operands: Sequence[Operand], processes: Any = None) -> Stack:
    """`operands` made by `as_matrices`, all with the same number of parts, as a stack."""
    parts = len(operands[0].layouts)

    def by_part(arrays: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [array[i] for i in range(parts) for array in arrays]

    return Stack(
        by_part([operand.points.parts for operand in operands]),
        by_part([operand.grads for operand in operands]),
        {name: by_part([operand.vectors[name] for operand in operands]) for name in operands[0].vectors},
        {name: [operand.scalars[name] for operand in operands] for name in operands[0].scalars},
        parts,
        processes,
    )


def raise_versions(written: Iterable[Tensor]) -> None:
    """Raise the versions of tensors that a kernel has written to, so that graphs that have saved them refuse to run."""
    torch.autograd.graph.increment_version(written)


class Arrays:
    """The parameters, gradients and state of `operands`, all contiguous, of one dtype on one device, with the same state."""

    def __init__(self, operands: Sequence[Operand], rule: Rule) -> None:
        if len({operand.state_names for operand in operands}) > 1:
            raise ValueError("some point sets have state that others do not have; put them into separate plans")
        self.params = [operand.points.parts[0] for operand in operands]
        self.grads: list[Any] = [operand.grads[0] for operand in operands]
        self.layouts = [operand.layouts[0] for operand in operands]
        self.vectors = {name: [operand.vectors[name][0] for operand in operands] for name in operands[0].vectors}
        self.scalars = {name: [operand.scalars[name] for operand in operands] for name in operands[0].scalars}
        self.addresses = {name: _addresses(tensors) for name, tensors in (self.vectors | self.scalars).items()}
        """Addresses of the state, by name; they do not change."""
        self.param_addresses, self.grad_addresses = _addresses(self.params), _addresses(self.grads)
        self.written = [*self.params, *chain(*self.vectors.values(), *map(self.scalars.__getitem__, rule.scalars))]
        """The tensors that every step writes to; a held norm is written once."""
        self._absent = [name for name in rule.stored if name not in self.vectors]
        self._dtype, self._device = self.params[0].dtype, self.params[0].get_device()
        self._sizes, self._strides = list(map(_size, self.params)), list(map(_stride, self.params))
        self._shapes = [p.shape for p in self.params]
        self._plain = all(map(_contiguous, self.params))
        self._stack: Stack | None = None

    def read(self, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Update the addresses of parameters and gradients; False if anything else about them or about their state, the
        `entries`, has changed.

        These dozen calls per tensor, all through `map`, are the cost of small tensors.
        """
        params, grads = self.params, list(map(_grad, self.params))
        try:
            addresses, self.grad_addresses = _addresses(params), _addresses(grads)
            state = [(list(map(itemgetter(name), entries)), tensors) for name, tensors in self._state()]
        except (TypeError, RuntimeError, KeyError):  # no gradient, a sparse one, or missing state
            return False
        if list(map(_size, params)) != self._sizes or list(map(_stride, params)) != self._strides:
            return False
        if not all(map(is_, map(_dtype, grads), repeat(self._dtype))) or list(map(_size, grads)) != self._sizes:
            return False
        if not all(map(_contiguous, grads)) if self._plain else not all(map(_same_order, params, grads)):
            return False
        if self._device >= 0 and any(grad.get_device() != self._device for grad in grads):
            return False
        if addresses != self.param_addresses:
            # At the same address, dtype and device are the same. A view with gaps may have the size and strides of another shape.
            if any(p.dtype != self._dtype or p.get_device() != self._device for p in params):
                return False
            if [p.shape for p in params] != self._shapes:
                return False
            self.param_addresses, self._stack = addresses, None
        for (found, tensors), before in zip(state, self.addresses.values(), strict=True):
            if not all(map(is_, found, tensors)) or _addresses(tensors) != before:
                return False
        self.grads = grads
        return not any(name in entry for name in self._absent for entry in entries)

    def stack(self) -> Stack:
        """All arrays as matrices: views, made again when the addresses of parameters change."""
        grads = [layout.as_matrix(grad) for layout, grad in zip(self.layouts, self.grads, strict=True)]
        if self._stack is None:
            vectors = {name: self._split(tensors) for name, tensors in self.vectors.items()}
            scalars = {
                name: [layout.split_scalars(a) for layout, a in zip(self.layouts, scalars, strict=True)]
                for name, scalars in self.scalars.items()
            }
            self._stack = Stack(self._split(self.params), grads, vectors, scalars)
        return self._stack._replace(g=grads)

    def _split(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [layout.split(tensor) for layout, tensor in zip(self.layouts, tensors, strict=True)]

    def _state(self) -> Iterable[tuple[str, list[Tensor]]]:
        return chain(self.vectors.items(), self.scalars.items())


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(_address, tensors))


def _like(p: Tensor, other: Tensor) -> Tensor:
    """`other` with the dtype and the strides of `p`."""
    alike = other.dtype == p.dtype and other.stride() == p.stride()
    return other if alike else torch.empty_like(p).copy_(other)


def _same_order(p: Tensor, other: Tensor) -> bool:
    """Whether `other` has its elements in the order of `p`."""
    return other.stride() == p.stride() or (p.is_contiguous() and other.is_contiguous())
