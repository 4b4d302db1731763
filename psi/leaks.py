"""What an eps leaves of an invariance, measured at the model's own weights, with its eps, in its own dtype.

The leak of a point is how much doubling it changes the outputs, relative to what a random move of the same length changes.
Derivatives tell it for all points at once: with random functionals L of the outputs, √n |⟨w, ∇L⟩| / (‖w‖ ‖∇L‖) is that ratio for
small moves. What they leave in doubt is doubled and moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cuts import Cut
from .euler import Euler, Tolerances
from .probe import Probe, ProbeError
from .rescaling import OutOfPasses, agreeing, changes

__all__ = ["ALLOWED", "Leak", "leaks"]

ALLOWED = 0.01
"""Beyond it the norm of a point matters to the network."""
DOUBT = 10.0
"""Derivatives that see more than so many times what is allowed need no confirmation: at w itself an eps leaks at most 8/3 of
the ratio that doubling shows."""
ROUNDING = 4
"""Changes of an output relative to its norm that are so many times the rounding of the weights' dtype do not count."""
FUNCTIONALS = 3
"""A leak that is this many random numbers squared is 10 times too small for one tensor in a thousand."""


@dataclass
class Leak:
    """Of one cut."""

    single: float
    """The ratio of the worst point."""
    together: float
    """The ratio of all points at once."""
    point: int
    """The worst of them."""
    leaking: int
    """How many of them leak more than is allowed."""
    influence: float
    """Change of the outputs, relative to their norm, by a small random move, extrapolated to the length of the tensor."""
    decided: bool = True
    """False if there was no pass left to tell."""

    @property
    def worst(self) -> float:
        """The larger of both ratios."""
        return max(self.single, self.together)


def leaks(probe: Probe, cuts: Sequence[Cut], tolerances: Tolerances, limit: int) -> dict[str, Leak]:
    """The leak of every cut, by name, with at most `limit` passes of the probe. What does not show at the model's own weights
    (a branch behind a gain of zero) is measured next to them."""
    found: dict[str, Leak] = {}
    for noise in (False, True):
        rest = [cut for cut in cuts if cut.name not in found]
        if rest:
            found |= _derivatives(probe, rest, tolerances, noise)
    for cut in cuts:
        found.setdefault(cut.name, Leak(0.0, 0.0, 0, 0, 0.0))
    try:
        doubling = _Doubling(probe, found, limit)
    except (ProbeError, OutOfPasses):
        return found
    # What is large is certain. Those in doubt come last, so that halving finds them together.
    unsure = sorted((cut for cut in cuts if found[cut.name].worst <= DOUBT * ALLOWED), key=lambda cut: found[cut.name].worst)
    for gains in (False, True):
        some = [cut for cut in unsure if gains == (probe.weights[cut.name].ndim < 2)]
        for cut in agreeing(some, doubling.harmless)[1]:
            found[cut.name].decided = False
    for cut in unsure:
        if found[cut.name].single > ALLOWED >= found[cut.name].together:
            doubling.measure_point(cut)
    return found


class _Doubling:
    """Outputs of the model as it is, with points doubled or moved."""

    def __init__(self, probe: Probe, found: dict[str, Leak], limit: int) -> None:
        self._probe, self._found, self._limit = probe, found, limit
        self._own = dict(probe.model.named_parameters())
        self._base = self._outputs({})

    def harmless(self, cuts: list[Cut]) -> bool:
        """Whether doubling all points of all `cuts` changes the outputs by less than is allowed for any of them alone."""
        if len(cuts) == 1:
            leak = self._found[cuts[0].name]
            leak.together = self._ratio(cuts[0], None)
            return leak.together <= ALLOWED
        gap = math.hypot(*self._changes({part: 2 * self._own[part] for cut in cuts for part in cut.parts}))
        # By how much a random move changes the outputs: they cannot change by more than about their own length.
        moves = [(leak, leak.influence / (1 + leak.influence)) for leak in (self._found[cut.name] for cut in cuts)]
        if any(gap > ALLOWED * move for _, move in moves):
            return False
        for leak, move in moves:
            leak.together = min(leak.together, gap / move if gap else 0.0)
        return True

    def measure_point(self, cut: Cut) -> None:
        """Double the worst point of `cut` alone."""
        leak = self._found[cut.name]
        try:
            leak.single = self._ratio(cut, leak.point)
        except OutOfPasses:
            leak.decided = False

    def _ratio(self, cut: Cut, point: int | None) -> float:
        """Change of an output by doubling over that by a random move of the same length, the largest of all outputs."""
        if self._probe.passes + 2 > self._limit:
            raise OutOfPasses
        generator = torch.Generator().manual_seed(0)
        own = {part: self._own[part].detach().double() for part in cut.parts}
        moving = {part: self._only(cut, part, w, point) for part, w in own.items()}
        noise = {
            part: self._only(cut, part, torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device), point)
            for part, w in own.items()
        }
        stretch = _length(moving) / (_length(noise) or 1.0)
        doubled = self._changes({part: w + moving[part] for part, w in own.items()})
        moved = self._changes({part: w + stretch * noise[part] for part, w in own.items()})
        return max((d / m if m > d * 1e-300 else math.inf) if d else 0.0 for d, m in zip(doubled, moved, strict=True))

    def _only(self, cut: Cut, part: str, tensor: Tensor, point: int | None) -> Tensor:
        """`tensor` with all points but one set to zero."""
        if point is None:
            return tensor
        layout = cut.rows.layout(self._own[part], 1)
        mask = torch.zeros(cut.count, dtype=tensor.dtype, device=tensor.device)
        mask[point] = 1.0
        kept = tensor.clone()
        layout.arrange(kept).mul_(mask.view(layout.arranged[: layout.axes] + (1,) * layout.coordinates))
        return kept

    def _changes(self, changed: dict[str, Tensor]) -> list[float]:
        """Of every output, where rounding of the model's own dtype does not count."""
        unit = max(torch.finfo(self._own[part].dtype).eps for part in changed)
        try:
            gaps = changes(self._outputs(changed), self._base)
        except ProbeError:
            return [math.inf] * max(1, len(self._base))
        return [gap if gap > ROUNDING * unit else 0.0 for gap in gaps]

    def _outputs(self, changed: dict[str, Tensor]) -> list[Tensor]:
        if self._probe.passes >= self._limit:
            raise OutOfPasses
        return self._probe.as_is(changed)


def _length(tensors: dict[str, Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in tensors.values()))


def _derivatives(probe: Probe, cuts: list[Cut], tolerances: Tolerances, noise: bool) -> dict[str, Leak]:
    """What derivatives say of those cuts that have any."""
    probe.fill(noise=noise)
    sums: dict[str, list[Tensor]] = {cut.name: [] for cut in cuts}
    floor = 0.0
    for functional in range(FUNCTIONALS):
        euler = Euler(probe.weights, probe.differentiate(0, functional=functional)[1], tolerances)
        floor = max(floor, euler.floor)
        for cut in cuts:
            sums[cut.name].append(torch.cat(list(euler.sums(cut)), 1))
        del euler
    found = {}
    for cut in cuts:
        product, w2, g2 = torch.stack(sums[cut.name], 1)
        n = sum(probe.weights[part].numel() for part in cut.parts)
        # Over the functionals, per point and of all points together.
        random = (w2 * g2).mean(0)
        radial = product.square().mean(0)
        whole = float(w2[0].sum() * g2.sum(1).mean())
        if whole <= floor**2:
            continue
        ratios = torch.where(random > floor**2, radial * (n / cut.count) / random, 0.0).sqrt()
        together = math.sqrt(float(product.sum(1).square().mean()) * n / whole)
        point, leaking = int(ratios.argmax()), int((ratios > ALLOWED).sum())
        found[cut.name] = Leak(float(ratios[point]), together, point, leaking, math.sqrt(whole / n))
    return found
