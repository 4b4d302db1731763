"""The test by rescaling: multiply points by positive factors and see whether any output changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from .cuts import Cut
from .probe import FAINT, Probe, ProbeError

__all__ = ["EXPONENTS", "OutOfPasses", "Rescaling", "agreeing", "changes", "multiplied", "spread"]

REACH = 7.0
"""Factors are between 2^-7 and 2^7."""
EXPONENTS = (5.0, REACH)
"""Where all points go the same way, random factors are 2^±5 … 2^±7, so that a clamp within a factor of 32 shows."""
FEW = 8
"""Cuts of at most so many points are tested point by point, too."""

T = TypeVar("T")

Exponents = Callable[[int, torch.Generator], Tensor]
"""Exponents of 2 for that many points."""


class OutOfPasses(Exception):  # noqa: N818
    """The number of forward passes that were allowed is used up."""


def spread(low: float, high: float) -> Exponents:
    """Different exponents for all points, evenly between `low` and `high`, in random order."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        places = (torch.randperm(count, generator=generator) + torch.rand(1, generator=generator).double()) / count
        return low + (high - low) * places

    return draw


def single(number: int) -> Exponents:
    """Only point `number` is enlarged."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return REACH * (torch.arange(count) == number % count).double()

    return draw


@contextmanager
def multiplied(weights: dict[str, Tensor], cuts: Sequence[Cut], exponents: Exponents, seed: int) -> Iterator[None]:
    """Multiply the points of `cuts` by powers of 2 for the time being, in place."""
    generator = torch.Generator().manual_seed(seed)
    factors = [2.0 ** exponents(cut.count, generator) for cut in cuts]
    _multiply(weights, cuts, factors)
    try:
        yield
    finally:
        _multiply(weights, cuts, [1 / factor for factor in factors])


@torch.no_grad()
def _multiply(weights: dict[str, Tensor], cuts: Sequence[Cut], factors: Sequence[Tensor]) -> None:
    for cut, factor in zip(cuts, factors, strict=True):
        for part in cut.parts:
            cut.multiply_(part, weights[part], factor)


class Rescaling:
    """All points at once by factors of their own: enlarged, made smaller, both, and one by one where there are few.

    `bases` are the outputs without eps, one entry per input; the turns take them one after the other. No test begins
    once the probe has made `limit` passes.
    """

    def __init__(self, probe: Probe, bases: Sequence[list[Tensor]], tolerance: float, limit: int) -> None:
        self._probe, self._bases, self._tolerance, self._limit = probe, bases, tolerance, limit

    def unchanged(self, cuts: list[Cut]) -> tuple[list[Cut], list[Cut]]:
        """Those of `cuts` whose points may be rescaled without changing an output, and those that there was no pass left for."""
        few = max((cut.count for cut in cuts if cut.count <= FEW), default=1)
        turns = [spread(*EXPONENTS), spread(*(-e for e in EXPONENTS)), spread(-REACH, REACH)]
        turns += [single(number) for number in range(few if few > 1 else 0)]
        undecided: list[Cut] = []
        for turn, exponents in enumerate(turns):
            # One by one, only cuts that have so many points; the others have been tested.
            tested = cuts if turn < 3 else [cut for cut in cuts if turn - 3 < cut.count <= FEW]
            good, late = agreeing(tested, partial(self._same, exponents, turn))
            undecided += late
            cuts = [cut for cut in cuts if cut in good or (cut not in tested and cut not in undecided)]
        return cuts, undecided

    def _same(self, exponents: Exponents, turn: int, cuts: list[Cut]) -> bool:
        if self._probe.passes >= self._limit:
            raise OutOfPasses
        number = turn % len(self._bases)
        with multiplied(self._probe.weights, cuts, exponents, turn):
            try:
                gaps = changes(self._probe.run(number, eps=False), self._bases[number])
            except ProbeError:
                return False  # what runs for the weights as they are and fails for rescaled ones is not invariant
        return max(gaps, default=0.0) <= self._tolerance


def agreeing(cuts: list[T], test: Callable[[list[T]], bool]) -> tuple[list[T], list[T]]:
    """Those of `cuts` that pass `test`, tried all together, then in halves; and those undecided when it is out of passes."""
    undecided: list[T] = []

    def halves(some: list[T], fails: bool) -> list[T]:
        try:
            if not some or (not fails and test(some)):
                return some
        except OutOfPasses:
            undecided.extend(some)
            return []
        if len(some) == 1:
            return []
        half = len(some) // 2
        first = halves(some[:half], False)
        # If all together fail and the first half does not, the second does.
        return first + halves(some[half:], len(first) == half < len(some) - 1)

    return halves(cuts, False), undecided


def changes(run: list[Tensor], base: list[Tensor]) -> list[float]:
    """Change of every output tensor relative to its norm, which counts as at least `FAINT` times that of the largest."""
    if len(run) != len(base) or any(t.shape != b.shape for t, b in zip(run, base, strict=True)):
        return [math.inf]
    norms = [float(b.norm()) for b in base]
    least = FAINT * max(norms, default=0.0) or 1.0
    return [float((t - b).norm()) / max(norm, least) for t, b, norm in zip(run, base, norms, strict=True)]
