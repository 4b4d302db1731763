"""From evidence to verdicts: the cut that is chosen for each parameter, and the reasons against the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from torch import Tensor, nn

from ..manifolds import Rows
from ..manifolds.parameters.rows import gather
from .cuts import Cut
from .euler import Euler, Evidence
from .leaks import Leak
from .pairs import Pair
from .probe import Probe
from .reasons import STARVED, UNUSED
from .report import Finding, Report

__all__ = ["Pairs", "Search", "report"]

DEAD = "gradient is zero: cannot tell; more samples or other inputs may"
WORDS = {
    "row": "each row may be rescaled",
    "block": "each block may be rescaled",
    "tensor": "the whole may be rescaled",
}


class Search:
    """What is known so far of all cuts of all parameters. `ways` are the cuts of each, from the finest on."""

    def __init__(self, ways: dict[str, list[Cut]]) -> None:
        self.ways = ways
        self.evidence = {cut: Evidence() for cuts in ways.values() for cut in cuts}
        self.proven: dict[str, Cut] = {}
        self.notes: dict[str, str] = {}
        """Why nothing can be said of a parameter, though no pass speaks against it."""
        self.radial: dict[str, float] = {}
        """|⟨w, g⟩| / (‖w‖ ‖g‖) of every tensor as a whole in the first pass."""

    def look(self, euler: Euler, *, sound: bool = True) -> None:
        """Add what one backward pass says of all cuts that have not been refuted.

        A pass is `sound` if the outputs were what they should be. If not, something was scattered that is not invariant, and
        others may fail for its sake: a channel that has become constant leaves rounding to the normalization layer
        after it. Such a failure counts against vectors; what is against matrices, rescaling decides.
        """
        first = not self.radial
        for name, cuts in self.ways.items():
            if first:
                self.radial[name] = euler.whole(name)
            alone = {cut.rows for cut in cuts if not cut.joined and not self.evidence[cut].refuted}
            for cut in cuts:
                if not self.evidence[cut].refuted and not (cut.joined and cut.rows in alone):
                    euler.judge(cut, self.evidence[cut], sound=sound or euler.weights[name].ndim < 2)
                    if self.evidence[cut].refuted and not cut.joined:
                        alone.discard(cut.rows)

    def likely(self) -> list[Cut]:
        """Per parameter the finest cut that a pass speaks for, and none against."""
        firsts = (next((c for c in cuts if not self.evidence[c].refuted), None) for cuts in self.ways.values())
        return [cut for cut in firsts if cut is not None and self.evidence[cut].held and not self.evidence[cut].suspect]

    def taken(self) -> list[Cut]:
        """Per parameter that is not settled the finest cut that nothing speaks against, if a pass speaks for it.

        A vector scales along with one parameter only: with the first that needs it.
        """
        bound = {part: cut.name for cut in self.proven.values() for part in cut.parts[1:]}
        found = []
        for name, cuts in self.ways.items():
            if name in self.proven or name in self.notes or name in bound:
                continue
            for cut in map(self._as_live, cuts):
                if self.evidence[cut].refuted:
                    continue
                if not self.evidence[cut].held:
                    self.notes[name] = DEAD
                    break
                other = next((bound[part] for part in cut.parts[1:] if part in bound), None)
                if other is not None:
                    self.notes[name] = (
                        f"scales only with {', '.join(cut.joined)}, which belongs to the points of {other}"
                    )
                    break
                bound |= dict.fromkeys(cut.parts[1:], name)
                found.append(cut)
                break
        return [cut for cut in found if bound.get(cut.name, cut.name) == cut.name]

    def _as_live(self, cut: Cut) -> Cut:
        """The coarsest cut along some of its dimensions that has as many points with a gradient: those without one make no cut finer."""
        return next(
            (
                other
                for other in reversed(self.ways[cut.name])
                if other.granularity == cut.granularity == "row"
                and (other.joined, other.rows.groups) == (cut.joined, cut.rows.groups)
                and set(other.rows.dims) < set(cut.rows.dims)
                and not self.evidence[other].refuted
                and self.evidence[other].held == self.evidence[cut].held > 0
            ),
            cut,
        )

    def settle(self, tested: list[Cut], good: list[Cut], undecided: list[Cut]) -> None:
        """Take down what rescaling said of the `tested` cuts."""
        for cut in tested:
            if cut in good:
                self.proven[cut.name] = cut
            elif cut in undecided:
                self.notes[cut.name] = "cannot tell within the number of forward passes"
            else:
                suspect = self.evidence[cut].suspect
                for other in self.ways[cut.name]:
                    self.evidence[other].refuted |= other == cut or (suspect and self.evidence[other].suspect)
        bound = {part for cut in self.proven.values() for part in cut.parts[1:]}
        self.proven = {name: cut for name, cut in self.proven.items() if name not in bound}


class Pairs(NamedTuple):
    """What is known of pairs of factors."""

    found: Sequence[Pair]
    blockers: Mapping[tuple[str, str], str]
    """What stands between two weights."""
    notes: Sequence[str]


def report(
    probe: Probe,
    search: Search,
    reasons: dict[str, str],
    leaks: dict[str, Leak],
    pairs: Pairs,
) -> Report:
    """The findings on all parameters."""
    model = probe.model
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    obstacles = {name: _obstacle(model, cut, leaks[name]) for name, cut in search.proven.items()}
    leads = {part: n for n, cut in search.proven.items() if obstacles[n] is None for part in cut.parts[1:]}
    findings = []
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if name in search.proven and obstacles[name] is None:
            cut = search.proven[name]
            radial, leak = search.evidence[cut].radial, leaks[name].worst
            words = WORDS[cut.granularity]
            findings.append(Finding(name, cut.granularity, cut.rows, cut.joined, radial, leak, words, shape))
            continue
        others = [other for other in names[id(p)] if other != name]
        if name in leads:
            reason = f"belongs to the points of {leads[name]}"
        elif name in search.proven:
            reason = str(obstacles[name])
        elif others:
            reason = f"shared with {others[0]}"
        else:
            reason = _reason(name, probe, search, reasons)
        findings.append(Finding(name, "none", Rows(), (), search.radial.get(name, math.nan), math.nan, reason, shape))
    paired = {both for pair in pairs.found for both in permutations(pair.names, 2)}
    missing = [f"{why} between {a} and {b}" for (a, b), why in pairs.blockers.items() if (a, b) not in paired]
    return Report(findings, notes=[*probe.notes, *pairs.notes], pairs=pairs.found, obstacles=missing)


def _reason(name: str, probe: Probe, search: Search, reasons: dict[str, str]) -> str:
    """Why a parameter is not invariant: what was measured, else what the graph says."""
    if name in probe.passed_over:
        return probe.passed_over[name]
    dead = search.notes.get(name) == DEAD
    if reasons[name] == UNUSED or (dead and reasons[name] == STARVED):
        return reasons[name]
    told = search.notes.get(name) or _part(probe, search.ways[name], search.evidence)
    # Scattered weights enlarge what rounding leaves of a gradient that was zero before.
    return told or (DEAD if search.radial.get(name) == 0 else reasons[name])


def _part(probe: Probe, ways: list[Cut], evidence: dict[Cut, Evidence]) -> str | None:
    """Which points are invariant, where others are not."""
    for cut in ways:
        part: Tensor = evidence[cut].part
        if part.any() and cut.count > 1:
            size = probe.weights[cut.name].shape[0] // cut.count
            spans, start = [], None
            for i, holds in enumerate([*part.tolist(), False]):
                if holds and start is None:
                    start = i
                if not holds and start is not None:
                    spans.append(f"{start * size}–{i * size - 1}")
                    start = None
            per = "row" if size == 1 else f"block of {size}"
            joined = f" with {', '.join(cut.joined)}" if cut.joined else ""
            rows = " and ".join(spans) if len(spans) < 4 else f"{', '.join(spans[:3])} …"
            return f"only rows {rows} of {size * cut.count} are invariant, per {per}{joined}: split the parameter to declare them"
    return None


def _obstacle(model: nn.Module, cut: Cut, leak: Leak) -> str | None:
    """Why an invariant parameter cannot be declared all the same: its length matters to an eps, half of a point is
    frozen, or a row is zero now."""
    if not leak.decided:
        return "cannot tell within the number of forward passes how much an eps leaks"
    if not leak.harmless:
        leaking = (
            f"{leak.leaking} of {cut.count} {cut.granularity}s leak" if leak.leaking else "all points together leak"
        )
        return f"the eps of a normalization layer hides it: {leaking}, up to {leak.worst:.0e}"
    parts = [model.get_parameter(part) for part in cut.parts]
    frozen = [part for part, p in zip(cut.parts, parts, strict=True) if not p.requires_grad]
    if 0 < len(frozen) < len(parts):
        return f"invariant with {', '.join(cut.joined)}, but {', '.join(frozen)} is frozen"
    points = gather([part.detach() for part in parts], [cut.rows.layout(part, 1) for part in parts])
    zero = (points == 0).all(1)
    return f"invariant, but row {int(zero.int().argmax())} is zero" if zero.any() else None
