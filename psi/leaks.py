"""Measuring how much an eps breaks an invariance: at the model's own weights, with its eps, in its own dtype.

The leak of a point is how much doubling it changes the outputs, relative to what a random move of the same length changes.
Derivatives tell it for all points at once: with random functionals L of the outputs, √n |⟨w, ∇L⟩| / (‖w‖ ‖∇L‖) is that ratio for
small moves. What they leave in doubt is doubled and moved, several times if the first random move does not settle it. Where all of
that is lost in the rounding of the dtype, derivatives, which are taken in float64, have the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cuts import Cut
from .euler import Euler, Tolerances
from .probe import Probe, ProbeError
from .rescaling import OutOfPasses, agreeing, changes

__all__ = ["ALLOWED", "Leak", "leaks"]

ALLOWED = 0.01
"""Beyond it the norm of a point matters to the network."""
KEPT = 0.5
"""How much of what is allowed a ratio may be on the word of few random moves: others may say up to twice as much."""
MOVES = 4
"""Random moves that are made of one point, at most. What is more than `KEPT` needs all of them, each on its own."""
MANY = 40
"""Points in doubt that are listed; there are passes for fewer."""
DOUBT = 10.0
"""Where derivatives see more than so many times what is allowed at several points, no confirmation is needed: at w itself an eps
leaks at most 8/3 of the ratio that doubling shows."""
REFUSED = 4 * ALLOWED
"""A ratio that is beyond what is allowed, though its denominator is one random move only."""
SURE = 0.25
"""Nor do derivatives of a point that see less than this part of it: they are made of few functionals."""
SATURATED = (1.0, 0.1)
"""A move of the length of the weights changes the outputs by less than derivatives say: by not more than about their own length, and
perhaps by not more than a tenth of it. What only the latter leaves in doubt is doubled as long as there are passes."""
ROUNDING = 4
"""Changes of an output relative to its norm that are so many times the rounding of the weights' dtype do not count."""
FUNCTIONALS = 3
"""A leak that is this many random numbers squared is 10 times too small for one tensor in a thousand."""

HALF = (torch.float16, torch.bfloat16)


@dataclass
class Ratio:
    """Of one point or of all together: change of the outputs by doubling over that by a random move of the same length."""

    value: float
    influence: float
    """Change of the outputs, relative to their norm, by a small random move, extrapolated to that length; 0 of what shows only next to
    the weights."""
    harmless: bool | None = None
    """Whether that is allowed, however the random moves have turned out; None until it has been doubled: until then `value` is what
    derivatives say."""

    def doubt(self, degree: int) -> float:
        """What it may be, for either of `SATURATED`."""
        return self.value * _saturation(self.influence, SATURATED[degree]) if self.harmless is None else 0.0


@dataclass
class Leak:
    """Of one cut."""

    together: Ratio
    """All points at once."""
    points: dict[int, Ratio]
    """Points in doubt by their numbers, the most doubtful first, `MANY` at most. A cut of one point shares it with `together`."""
    others: float
    """The largest ratio of the other points."""
    beyond: int
    """How many of them leak more than is allowed."""
    decided: bool = True
    """False if there was no pass left to tell."""

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max(self.others, *(ratio.value for ratio in self.ratios))

    @property
    def leaking(self) -> int:
        """How many points leak more than is allowed."""
        return self.beyond + sum(
            p.value > ALLOWED if p.harmless is None else not p.harmless for p in self.points.values()
        )

    @property
    def ratios(self) -> list[Ratio]:
        """Of all together, and of the points in doubt."""
        return [self.together, *self.points.values()]

    @property
    def refuted(self) -> bool:
        """Whether doubling has shown too much."""
        return any(ratio.harmless is False for ratio in self.ratios)

    @property
    def harmless(self) -> bool:
        """Whether no ratio is beyond what is allowed."""
        unmeasured = [ratio.value for ratio in self.ratios if ratio.harmless is None]
        return not self.refuted and max(self.others, *unmeasured, 0.0) <= _settled(MOVES)


def leaks(probe: Probe, cuts: Sequence[Cut], tolerances: Tolerances, limit: int) -> dict[Cut, Leak]:
    """The leak of every cut, with at most `limit` passes of the probe. What does not show at the model's own weights
    (a branch that is multiplied by a weight of zero) is measured next to them."""
    found: dict[Cut, Leak] = {}
    for noise in (False, True):
        rest = [cut for cut in cuts if cut not in found]
        if rest:
            found |= _derivatives(probe, rest, tolerances, noise)
    for cut in cuts:
        found.setdefault(cut, Leak(Ratio(0.0, 0.0), {}, 0.0, 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _double(probe, cuts, found, limit)
    return found


def _double(probe: Probe, cuts: Sequence[Cut], found: dict[Cut, Leak], limit: int) -> None:
    """Correct what derivatives say by doubling what they leave in doubt."""
    try:
        doubling = _Doubling(probe, found, limit)
    except ProbeError:
        return  # a model that cannot run in its own dtype here
    # What is large is certain. Those in doubt come last, so that halving finds them together.
    unsure = sorted(
        (cut for cut in cuts if found[cut].worst <= DOUBT * ALLOWED),
        key=lambda cut: found[cut].together.doubt(0),
    )
    confirmed = []
    for vectors in (False, True):  # what is declared comes first
        some = [cut for cut in unsure if vectors == (probe.weights[cut.name].ndim < 2)]
        for shows in (True, False):
            harmless, undecided = agreeing(
                [c for c in some if shows == (found[c].together.influence > 0)], doubling.harmless
            )
            for cut in undecided:
                found[cut].decided = False
            doubling.confirm(harmless, 0)
            confirmed += harmless
    doubling.confirm(confirmed, 1)
    # What derivatives say of a single point may be a small number over a smaller one.
    doubling.confirm([cut for cut in cuts if cut not in unsure and found[cut].leaking == 1], 1)


class _Doubling:
    """Outputs of the model as it is, with points doubled or moved."""

    def __init__(self, probe: Probe, found: dict[Cut, Leak], limit: int) -> None:
        self._probe, self._found, self._limit = probe, found, limit
        parameters = dict(probe.model.named_parameters())
        self._weights = {name: parameters[name].detach() for name in probe.weights}
        self._base = self._outputs({})
        # What rounding does to each output, seen by changing the weights by as much.
        rounded = self._outputs({name: _rounded(w) for name, w in self._weights.items()})
        unit = max(torch.finfo(w.dtype).eps for w in self._weights.values())
        self._noise = [ROUNDING * max(gap, unit) for gap in changes(rounded, self._base)]

    def harmless(self, cuts: list[Cut]) -> bool:
        """Whether doubling all points of all `cuts` changes the outputs by less than is allowed for any of them alone."""
        wholes = [self._found[cut].together for cut in cuts]
        if len(cuts) == 1:
            self._measure(cuts[0], None, wholes[0])
            return bool(wholes[0].harmless)
        if any(whole.doubt(0) > SURE * ALLOWED for whole in wholes):
            return False
        doubled = dict(self._weights)
        for cut in cuts:
            for part in cut.parts:  # of which several cuts may have slices
                doubled[part] = doubled[part] + self._only(cut, part, self._weights[part], None)
        gap = math.hypot(*self._changes({part: doubled[part] for cut in cuts for part in cut.parts}))
        return all(gap <= ALLOWED * _expected(whole.influence) for whole in wholes)

    def confirm(self, cuts: list[Cut], degree: int) -> None:
        """Double alone what is in doubt of that degree: all points together, the worst one of every cut, then the others."""
        queue: list[tuple[int, float, Cut, int | None, Ratio]] = []
        for cut in cuts:
            for turn, (point, ratio) in enumerate([(None, self._found[cut].together), *self._points(cut, degree)]):
                queue.append((min(turn, 2), -ratio.doubt(degree), cut, point, ratio))
        for _, _, cut, point, ratio in sorted(queue, key=lambda entry: entry[:2]):
            leak = self._found[cut]
            if ratio.doubt(degree) <= SURE * ALLOWED or leak.refuted:
                continue
            try:
                self._measure(cut, point, ratio)
            except OutOfPasses:
                leak.decided = leak.decided and ratio.doubt(0) <= _settled(MOVES)

    def _points(self, cut: Cut, degree: int) -> list[tuple[int, Ratio]]:
        """Points in doubt, the most doubtful first."""
        return sorted(self._found[cut].points.items(), key=lambda entry: -entry[1].doubt(degree))

    def _measure(self, cut: Cut, point: int | None, ratio: Ratio) -> None:
        """Replace what derivatives have said by the change of an output by doubling over that by a random move of the same length (root
        mean square of as many as it takes to decide), the largest of all outputs. It is kept where
        rounding hides both."""
        doubled = self._changes(
            {part: self._weights[part] + self._only(cut, part, self._weights[part], point) for part in cut.parts}
        )
        if not any(doubled):
            # Usually derivatives suffice to know that a move shows, and no pass is needed.
            shows = ALLOWED * _expected(ratio.influence) > max(self._noise) or any(
                ALLOWED * moved > noise for moved, noise in zip(self._moved(cut, point), self._noise, strict=True)
            )
            ratio.value = 0.0 if shows else ratio.value
            ratio.harmless = ratio.value <= _settled(MOVES)
            return
        squares = [0.0] * len(doubled)
        value, worst = math.inf, 0.0
        for count in range(1, MOVES + 1):
            if count > 1 and self._probe.passes >= self._limit and value > ALLOWED:
                worst = value
                break
            moved = self._moved(cut, point)
            worst = max(worst, _largest(doubled, moved))
            squares = [s + m**2 for s, m in zip(squares, moved, strict=True)]
            value = _largest(doubled, [math.sqrt(s / count) for s in squares])
            if value <= _settled(count) or value >= REFUSED / math.sqrt(count):
                worst = value
                break
        ratio.value, ratio.harmless = value, worst <= ALLOWED

    def _moved(self, cut: Cut, point: int | None) -> list[float]:
        """Changes by a random move as long as the points."""
        moves = {part: self._only(cut, part, torch.randn_like(self._weights[part]), point) for part in cut.parts}
        stretch = _length(self._only(cut, part, self._weights[part], point) for part in cut.parts) / _length(
            moves.values()
        )
        for part, move in moves.items():
            move.mul_(stretch).add_(self._weights[part])
        return self._changes(moves)

    def _only(self, cut: Cut, part: str, tensor: Tensor, point: int | None) -> Tensor:
        """`tensor` with all points but one set to zero, or with all that is no point."""
        if point is None and cut.slices is None:
            return tensor
        layout, kept = cut.layout(part, tensor), torch.zeros_like(tensor)
        points = layout.split(tensor)
        layout.write(kept, points if point is None else points * (torch.arange(cut.count) == point).to(points)[:, None])
        return kept

    def _changes(self, changed: dict[str, Tensor]) -> list[float]:
        """Of every output, where rounding does not count."""
        try:
            gaps = changes(self._outputs(changed), self._base)
        except ProbeError:
            return [math.inf] * len(self._base)
        return [gap if gap > noise else 0.0 for gap, noise in zip(gaps, self._noise, strict=True)]

    def _outputs(self, changed: dict[str, Tensor]) -> list[Tensor]:
        if self._probe.passes >= self._limit:
            raise OutOfPasses
        return self._probe.as_is(changed)


def _settled(count: int) -> float:
    """A ratio that is within what is allowed, though its denominator is the mean of so many random moves only."""
    return ALLOWED * KEPT * (1 - 0.5 / math.sqrt(count))


def _largest(doubled: list[float], moved: list[float]) -> float:
    """Ratio of two changes, the largest of all outputs."""
    return max((d / m if m else math.inf) if d else 0.0 for d, m in zip(doubled, moved, strict=True))


def _saturation(influence: Any, limit: float) -> Any:
    """How many times smaller the change by a move of full length may be than derivatives say, if it does not exceed `limit`."""
    return 1 + influence / limit


def _expected(influence: float) -> float:
    """Change of the outputs by a random move of full length, by what derivatives say."""
    return influence / _saturation(influence, SATURATED[0])


def _rounded(w: Tensor) -> Tensor:
    """`w` with every entry moved by about its rounding."""
    return torch.randn_like(w).mul_(torch.finfo(w.dtype).eps).add_(1).mul_(w)


def _length(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float((t.float() if t.dtype in HALF else t).norm()) for t in tensors))


def _derivatives(probe: Probe, cuts: list[Cut], tolerances: Tolerances, noise: bool) -> dict[Cut, Leak]:
    """What derivatives say of those cuts that have any."""
    probe.fill(noise=noise)
    sums: dict[Cut, list[Tensor]] = {cut: [] for cut in cuts}
    floor = 0.0
    for functional in range(FUNCTIONALS):
        euler = Euler(probe.weights, probe.differentiate(0, functional=functional)[1], tolerances)
        floor = max(floor, euler.floor)
        for cut in cuts:
            sums[cut].append(euler.full(cut))
        del euler
    found = {}
    for cut in cuts:
        product, _, w2, g2 = torch.stack(sums[cut], 1)
        n = sum(cut.count * cut.layout(part, probe.weights[part]).event[0] for part in cut.parts)
        # Over the functionals, per point and of all points together.
        random = (w2 * g2).mean(0)
        radial = product.square().mean(0)
        whole = float(w2[0].sum() * g2.sum(1).mean())
        if whole <= floor**2:
            continue
        ratios = torch.where(random > floor**2, radial * (n / cut.count) / random, 0.0).sqrt()
        together = Ratio(
            math.sqrt(float(product.sum(1).square().mean()) * n / whole), 0.0 if noise else math.sqrt(whole / n)
        )
        found[cut] = _leak(together, ratios, (random / (n / cut.count)).sqrt())
    return found


def _leak(together: Ratio, ratios: Tensor, influences: Tensor) -> Leak:
    """What derivatives say of one cut: of all points together, and of each."""
    if len(ratios) == 1:
        return Leak(together, {0: together}, 0.0, 0)
    near, far = (ratios * _saturation(influences, limit) for limit in SATURATED)
    # The far ones are doubled as long as there are passes, so that the worst of them will do.
    chosen = [i for i in near.argsort(descending=True)[:MANY].tolist() if near[i] > SURE * ALLOWED]
    chosen = list(dict.fromkeys([*chosen, int(far.argmax())]))
    points = {i: Ratio(float(ratios[i]), float(influences[i])) for i in chosen}
    others = ratios.clone()
    others[chosen] = 0.0
    return Leak(together, points, float(others.max()), int((others > ALLOWED).sum()))
