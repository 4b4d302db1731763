"""The test by acting: transform the factors of pairs by random elements of their group and see whether any output changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..manifolds.parameters.factors import Grid
from .probe import Probe, ProbeError
from .rescaling import EXPONENTS, OutOfPasses, changes, spread

if TYPE_CHECKING:
    from .pairs import Pair

__all__ = ["Acting"]

CONDITION = 3.0
"""Singular values of random matrices are 2^-3 … 2^3."""


class Acting:
    """Pairs acted upon, all points of each by elements of their own, and put back.

    `bases` are the outputs without eps, one entry per input. No test begins once the probe has made `limit` passes.
    """

    def __init__(self, probe: Probe, bases: Sequence[list[Tensor]], tolerance: float, limit: int) -> None:
        self._probe, self._tolerance, self._limit = probe, tolerance, limit
        self.late = False
        """Whether a test has not begun for that."""
        self._turns = [self._flipped(bases), (0, False, bases[0])]
        """Input, whether vectors have the other signs, and outputs, on the way there and back."""

    def _flipped(self, bases: Sequence[list[Tensor]]) -> tuple[int, bool, list[Tensor]]:
        """With other signs of their biases, units that are on or off for all inputs, which seem to be linear, are not. Where the model
        refuses such weights, they stay."""
        number = 1 % len(bases)
        try:
            with _flipped(self._probe.weights):
                return number, True, self._probe.run(number, eps=False)
        except ProbeError:
            return number, False, bases[number]

    def unchanged(self, pairs: Sequence[Pair], *, signs: bool, back: bool) -> bool:
        """Whether the outputs are the same for `pairs` transformed, by factors with random `signs` or by positive ones.

        On the way `back` elements are inverted and have the other signs: what is a ReLU for R is none for −R⁻¹.
        """
        if self._probe.passes >= self._limit:
            self.late = True
            raise OutOfPasses
        number, flipped, base = self._turns[back]
        weights = self._probe.weights
        with _flipped(weights) if flipped else nullcontext(), _transformed(weights, pairs, signs, back):
            try:
                gaps = changes(self._probe.run(number, eps=False), base)
            except ProbeError:
                return False
        return max(gaps, default=0.0) <= self._tolerance


@contextmanager
def _flipped(weights: dict[str, Tensor]) -> Iterator[None]:
    """The other signs for all vectors, for the time being."""
    vectors = [w for w in weights.values() if w.ndim == 1]
    for w in vectors:
        w.detach().neg_()
    try:
        yield
    finally:
        for w in vectors:
            w.detach().neg_()


@contextmanager
def _transformed(weights: dict[str, Tensor], pairs: Sequence[Pair], signs: bool, back: bool) -> Iterator[None]:
    kept = {name: weights[name].data for pair in pairs for name in pair.names}
    generator = torch.Generator().manual_seed(0)
    for name, w in kept.items():
        weights[name].data = w.clone()
    for pair in pairs:
        _act(weights, pair, signs, back, generator)
    try:
        yield
    finally:
        for name, w in kept.items():
            weights[name].data = w


@torch.no_grad()
def _act(weights: dict[str, Tensor], pair: Pair, signs: bool, back: bool, generator: torch.Generator) -> None:
    """(B, A) ← (B R, R⁻¹ A) for a random R per point, or (u, v) ← (a u, a⁻ᵖ v)."""
    flips = torch.randint(2, (2, pair.points), generator=generator) * 2.0 - 1
    if pair.k > 1:
        u, v = (
            torch.linalg.qr(torch.randn(pair.points, pair.k, pair.k, generator=generator, dtype=torch.float64))[0]
            for _ in range(2)
        )
        s = 2.0 ** (CONDITION * (2 * torch.rand(pair.points, 1, pair.k, generator=generator, dtype=torch.float64) - 1))
        s = -1 / s if back else s
        sides: tuple[Tensor, Tensor] = ((u * s) @ v.mT, (u / s) @ v.mT)  # R and R⁻ᵀ
    else:
        exponents = flips[0] * spread(*EXPONENTS)(pair.points, generator)
        a = 2.0 ** (-exponents if back else exponents)
        sign = (-flips[1] if back else flips[1]).to(a) if signs else torch.ones_like(a)
        sides = (sign * a, sign**pair.degree * a**-pair.degree)
    for parts, element in zip((pair.factors.left, pair.factors.right), sides, strict=True):
        for part in parts:
            w = weights[part.name].detach()
            _apply(part.grid(tuple(w.shape), pair.k), w, element.to(w))


def _apply(grid: Grid, w: Tensor, element: Tensor) -> None:
    """Multiply the slices of `w` by a matrix, or a number, per point, in place."""
    if element.ndim > 1:
        grid.write(w, grid.split(w) @ element)
    else:
        slices = grid.strided(w)
        levels = [n for n, _ in grid.point_levels]
        slices.mul_(element.view(*levels, *(1,) * (slices.ndim - len(levels))))
