"""The test by rescaling: multiply points by positive factors and see whether any output changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .cuts import Cut
from .probe import Probe, ProbeError

__all__ = ["first_agreeing", "multiply", "unchanged"]

EXPONENTS = (5, 6, 7)
"""Random factors are 2^±5 … 2^±7: powers of two can be undone without a trace, and a clamp within a factor of 32 of what
it clamps shows."""
TIGHT = 1e-6
"""Relative change of the outputs that counts as none: rounding stays far below it, and so does an eps that is set aside."""

Direction = Literal["up", "down", "either"]


def multiply(weights: dict[str, Tensor], cuts: Sequence[Cut], direction: Direction, *, undo: bool = False) -> None:
    """Multiply the points of `cuts` by random powers of two, in place: above one, below one or either, or divide again."""
    generator = torch.Generator().manual_seed(0)
    for cut in cuts:
        layouts = [cut.rows.layout(weights[part], 1) for part in cut.parts]
        shape = layouts[0].batch
        exponent = torch.randint(EXPONENTS[0], EXPONENTS[-1] + 1, shape, generator=generator)
        if direction == "either":
            exponent *= 2 * torch.randint(2, shape, generator=generator) - 1
        if (direction == "down") != undo:
            exponent = -exponent
        for part, layout in zip(cut.parts, layouts, strict=True):
            points = layout.arrange(weights[part])
            factor = (2.0 ** exponent.double()).to(points.device)
            points.mul_(factor.view(layout.arranged[: layout.axes] + (1,) * layout.coordinates))


def unchanged(probe: Probe, cuts: Sequence[Cut], bases: Sequence[list[Tensor]]) -> bool:
    """Whether all points of `cuts` may be enlarged together by random factors, and made smaller, without changing what the
    model returns without eps: `bases`, one entry per input.

    All in one direction at a time: factors of layers that follow each other must not cancel.
    """
    for turn in range(max(2, len(bases))):
        number = min(turn, len(bases) - 1)
        direction: Direction = "down" if turn % 2 else "up"
        multiply(probe.weights, cuts, direction)
        try:
            gap = _gap(probe.run(number, eps=False), bases[number])
        except ProbeError:
            gap = math.inf  # what runs for the weights as they are and fails for rescaled ones is not invariant
        multiply(probe.weights, cuts, direction, undo=True)
        if not gap <= TIGHT:
            return False
    return True


def first_agreeing(options: dict[str, list[Cut]], test: Callable[[list[Cut]], bool]) -> list[Cut]:
    """Per parameter the first of its cuts, in the order given, that passes `test` together with the others'."""
    pending = {name: list(cuts) for name, cuts in options.items() if cuts}
    kept: list[Cut] = []
    while pending:
        good = _agreeing([cuts[0] for cuts in pending.values()], test)
        kept += good
        done = {cut.name for cut in good}
        pending = {name: rest[1:] for name, rest in pending.items() if name not in done and len(rest) > 1}
    return kept


def _agreeing(cuts: list[Cut], test: Callable[[list[Cut]], bool]) -> list[Cut]:
    """Those of `cuts` that pass `test`, tried all together, then in halves."""
    if not cuts or test(cuts):
        return cuts
    if len(cuts) == 1:
        return []
    half = len(cuts) // 2
    return _agreeing(cuts[:half], test) + _agreeing(cuts[half:], test)


def _gap(run: list[Tensor], base: list[Tensor]) -> float:
    """Largest change of an output tensor relative to its norm."""
    if len(run) != len(base) or any(t.shape != b.shape for t, b in zip(run, base, strict=True)):
        return math.inf
    gaps = [
        float((t - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny)) for t, b in zip(run, base, strict=True)
    ]
    return max(gaps, default=0.0)
