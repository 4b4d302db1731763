"""Sums of slices of an axis at equal distances, at every place where they fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..manifolds.parameters.factors import Levels
from .charges import Array, Bundle, Indices

__all__ = ["Window", "windows"]


@dataclass(frozen=True)
class Window:
    """Slices at `levels` from the first one, which goes over the axis; with `block`, over the first ``block`` indices of every
    so many as the window spans."""

    levels: Levels = ()
    block: int | None = None

    @cached_property
    def shifts(self) -> Indices:
        """Where the slices are, relative to the first."""
        found = np.zeros(1, np.int64)
        for number, distance in self.levels:
            found = (found[:, None] + distance * np.arange(number)).ravel()
        return found

    @cached_property
    def count(self) -> int:
        """How many slices are summed."""
        return prod(number for number, _ in self.levels)

    def places(self, length: int) -> int:
        """How many places there are on an axis of that length."""
        if self.block is not None:
            return length // self.count
        return length - sum((number - 1) * distance for number, distance in self.levels)

    def offsets(self, length: int) -> Indices:
        """The places of the first slice on an axis of that length."""
        if self.block is None:
            return np.arange(self.places(length))
        span = self.count * self.block
        return (span * np.arange(length // span)[:, None] + np.arange(self.block)).ravel()

    def ends(self, live: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """At which of the `offsets` the first and the last of the slices are `live`."""
        first = self.offsets(len(live))
        return live[first] & live[first + self.shifts[-1]]

    def sums(self, values: Array) -> Array:
        """Of values (…, length) at all `offsets`."""
        if self.block is not None:
            return (
                values.reshape(*values.shape[:-1], -1, self.count, self.block).sum(-2).reshape(*values.shape[:-1], -1)
            )
        for number, distance in self.levels:
            if number == 2:
                values = values[..., :-distance] + values[..., distance:]
                continue
            length = values.shape[-1]
            steps = -(-length // distance)
            padded = np.zeros((*values.shape[:-1], (steps + 1) * distance))
            padded[..., distance : distance + length] = values
            sums = padded.reshape(*values.shape[:-1], steps + 1, distance).cumsum(-2)
            values = (sums[..., number:, :] - sums[..., :-number, :]).reshape(*values.shape[:-1], -1)
            values = values[..., : length - (number - 1) * distance]
        return values


def windows(bundle: Bundle, shape: tuple[int, ...], *, fused: bool = True) -> tuple[Window, ...]:
    """The windows that may make points on the axis of `bundle`, of a parameter of that shape: of one level, and of two numbers that
    are repeated, as the frequencies of rotary embeddings are in query heads that share a key head.

    Distances divide the length of the axis, and so do numbers; of `fused` weights, which may hold queries beside a key and a value per
    group, so may one or two more.
    """
    if len(bundle.main.dims) > 1:
        block = shape[bundle.main.dims[1]]
        return tuple(Window(((n, block),), block) for n in _divisors(shape[0]) if 1 < n < shape[0])
    return _of_length(bundle.values.shape[1], fused)


@lru_cache(maxsize=256)
def _of_length(length: int, fused: bool) -> tuple[Window, ...]:
    found = []
    for distance in _divisors(length):
        numbers = _numbers(length // distance, fused)
        if distance == 1 and fused:  # all numbers of several heads
            numbers |= {n * k for k in _divisors(length) for n in _numbers(length // k, fused)}
        for number in sorted(numbers):
            found.append(Window(((number, distance),)))
            for half in _halves(distance):
                if (number - 1) * distance + half < length and 2 * half < distance:
                    found.append(Window(((number, distance), (2, half))))
    halves = {half for distance in _divisors(length) for half in _halves(distance)}
    return (*found, *(Window(((2, half),)) for half in sorted(halves - set(_divisors(length)))))


def _halves(size: int) -> set[int]:
    """Half of how many numbers of a head of that size rotary embeddings may turn: what divides it, and eighths of it."""
    return {
        half for half in (*_divisors(size), *(n * size // 8 for n in range(1, 5) if size % 8 == 0)) if 2 * half <= size
    }


def _numbers(most: int, fused: bool) -> set[int]:
    if most < 2:
        return set()
    return {2} | {d - more for d in _divisors(most) for more in range(3 if fused else 1) if d - more > 1}


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))
