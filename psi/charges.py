"""Charges: what a scaling of each slice of each weight does to a functional of the outputs, the diagonal of the moment map.

If f(a u, a⁻ᵖ v) = f(u, v) for all a > 0, then ⟨u, ∂L/∂u⟩ = p ⟨v, ∂L/∂v⟩ for every functional L of the outputs: slices that can be
scaled against each other have equal charges, up to the degree p, whatever the weights are (the derivative with respect to a, at a = 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .euler import CHUNK

__all__ = ["Array", "Axis", "Bundle", "Charges", "Indices"]

LONG = 2**20
"""Indices of two dimensions are counted together up to so many."""

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """The slices of a parameter along one dimension, or along several that are counted together, the last one fastest."""

    name: str
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Bundle:
    """Axes of one module whose indices belong together, such as the rows of a weight and its bias."""

    axes: tuple[Axis, ...]
    """The first one is that of the weight."""
    values: Array
    """Sum of their charges, (passes, n)."""
    sizes: Array
    """√Σ (w g)², the size that each would have if the products had random signs."""
    singles: bool = True
    """Whether an index by itself may be a point, or only several that are summed."""

    @property
    def main(self) -> Axis:
        """The axis of the weight."""
        return self.axes[0]

    @cached_property
    def sums(self) -> Array:
        """Charges and the squares of their sizes, which add up: (2, passes, n)."""
        return np.stack([self.values, self.sizes**2])


class Charges:
    """⟨w, ∂L/∂w⟩ of every slice along every dimension of every parameter, in each backward pass, relative to none."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        stacks = {name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) == 3}
        self.axes = [
            Axis(name, dims)
            for name, shape in shapes.items()
            for dims in _dims(shape, name.rpartition(".")[0] in stacks)
        ]
        self.values: dict[Axis, Array] = {axis: np.zeros((0, self.length(axis))) for axis in self.axes}
        self._squares: dict[Axis, Array] = dict(self.values)

    @property
    def passes(self) -> int:
        """How many passes have been added."""
        return len(next(iter(self.values.values()))) if self.values else 0

    def length(self, axis: Axis) -> int:
        """The number of slices."""
        return prod(self.shapes[axis.name][dim] for dim in axis.dims)

    def add(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """The charges of one more pass. Products are made of a piece of a weight at a time."""
        for name in self.shapes:
            axes = [axis for axis in self.axes if axis.name == name]
            for axis, sums in zip(axes, _sums(weights[name].detach(), gradients[name], axes), strict=True):
                found = sums.flatten(1).double().cpu().numpy()
                self.values[axis] = np.concatenate([self.values[axis], found[:1]])
                self._squares[axis] = np.concatenate([self._squares[axis], found[1:]])

    def floor(self, dead: float) -> Array:
        """What is no charge in each pass, since it may be rounding: `dead` times the size of the largest, or of the functional."""
        largest = [np.sqrt(squares.sum(1)) for squares in self._squares.values()]
        return dead * np.maximum(1.0, np.max(largest, 0))

    def bundles(self) -> list[Bundle]:
        """Every axis alone, and with each vector of the same module that has as many entries."""
        found = [self.bundle(axis) for axis in self.axes]
        vectors: dict[tuple[str, int], list[Axis]] = {}
        for axis in self.axes:
            if prod(self.shapes[axis.name]) == self.length(axis):
                vectors.setdefault((_owner(axis), self.length(axis)), []).append(axis)
        order = {name: number for number, name in enumerate(self.shapes)}
        for axis in self.axes:
            own = len(self.shapes[axis.name])
            for other in vectors.get((_owner(axis), self.length(axis)), []):
                narrower = len(self.shapes[other.name]) < own
                beside = len(self.shapes[other.name]) == own == 1 and order[other.name] > order[axis.name]
                if other.name != axis.name and (narrower or beside):
                    found.append(self.bundle(axis, other))
        return found

    def bundle(self, *axes: Axis) -> Bundle:
        """The sum over several axes."""
        values = sum(self.values[axis] for axis in axes)
        squares = sum(self._squares[axis] for axis in axes)
        return Bundle(axes, np.asarray(values), np.sqrt(squares), self._singles(axes[0]))

    def _singles(self, axis: Axis) -> bool:
        return (
            len(axis.dims) == 1 or len(self.shapes[axis.name]) == 3 or prod(self.shapes[axis.name]) == self.length(axis)
        )


def _dims(shape: tuple[int, ...], stacked: bool) -> Iterator[tuple[int, ...]]:
    """Each dimension, also where inputs or outputs are one, and those that may be counted together: of stacked weights and their biases,
    and of convolutions with groups."""
    wide = [dim for dim, size in enumerate(shape) if size > 1]
    yield from ((dim,) for dim, size in enumerate(shape) if size > 1 or dim < 2)
    pairs = [(0, dim) for dim in wide[1:] if wide[0] == 0 and (dim == 1 or len(shape) == 3)]
    if len(shape) > 2 or stacked:
        yield from (pair for pair in pairs if prod(shape[dim] for dim in pair) <= LONG)


def _owner(axis: Axis) -> str:
    return axis.name.rpartition(".")[0]


def _sums(w: Tensor, g: Tensor, axes: list[Axis]) -> list[Tensor]:
    """Σ w g and Σ (w g)² over all other dimensions, (2, …) for each axis."""
    found = [w.new_zeros((2, *(w.shape[dim] for dim in axis.dims))) for axis in axes]
    step = max(1, CHUNK * w.shape[0] // max(1, w.numel())) if w.ndim else 1
    for start in range(0, w.shape[0] if axes else 0, step):
        product = w[start : start + step] * g[start : start + step]
        squares = product.square()
        for axis, sums in zip(axes, found, strict=True):
            others = tuple(dim for dim in range(w.ndim) if dim not in axis.dims)
            part = sums[:, start : start + step] if 0 in axis.dims else sums
            for total, term in zip(part, (product, squares), strict=True):
                total.add_(term.sum(others) if others else term)
    return found
