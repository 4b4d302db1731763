"""From evidence to verdicts: the cut that is chosen for each parameter, and the reasons against the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from torch import nn

from ..manifolds import Rows
from ..manifolds.parameters.rows import gather
from .cuts import Cut
from .euler import Euler, Evidence
from .leaks import Leak
from .pairs import Pair
from .probe import Probe
from .reasons import STARVED, UNUSED
from .report import Finding, Report
from .tables import slices_told

__all__ = ["LATE", "Pairs", "Search", "Sliced", "report"]

LATE = "cannot tell within the number of forward passes"
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

    @property
    def divisible(self) -> dict[str, set[str]]:
        """Parameters that may have slices as points of their own, and those that may scale along: what belongs to no other points. Rows
        are as fine as slices."""
        rows = {part for cut in self.proven.values() if cut.granularity == "row" for part in cut.parts}
        bound = {part: cut.name for cut in self.proven.values() for part in cut.parts}
        beside: dict[str, list[str]] = {}
        for name in self.ways.keys() - rows - self.notes.keys():
            beside.setdefault(name.rpartition(".")[0], []).append(name)
        return {
            name: {part for part in names if bound.get(part, name) == name}
            for names in beside.values()
            for name in names
        }

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
                self.notes[cut.name] = LATE
            else:
                suspect = self.evidence[cut].suspect
                for other in self.ways[cut.name]:
                    self.evidence[other].refuted |= other == cut or (suspect and self.evidence[other].suspect)
        bound = {part for cut in self.proven.values() for part in cut.parts[1:]}
        self.proven = {name: cut for name, cut in self.proven.items() if name not in bound}


class Sliced(NamedTuple):
    """What is known of scale-invariant slices of parameters that are not invariant as a whole."""

    proven: Mapping[str, Sequence[Cut]]
    radial: Mapping[Cut, float]
    """What is left of Euler's identity."""

    @property
    def cuts(self) -> list[Cut]:
        """Those of all parameters."""
        return [cut for cuts in self.proven.values() for cut in cuts]


class Pairs(NamedTuple):
    """What is known of pairs of factors."""

    found: Sequence[Pair]
    blockers: Mapping[tuple[str, str], str]
    """What stands between two weights."""
    notes: Sequence[str]


def report(
    probe: Probe,
    search: Search,
    slices: Sliced,
    reasons: dict[str, str],
    leaks: dict[Cut, Leak],
    pairs: Pairs,
) -> Report:
    """The findings on all parameters."""
    model = probe.model
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    proven = {name: [cut] for name, cut in search.proven.items()} | dict(slices.proven)
    obstacles = {cut: _obstacle(model, cut, leaks[cut]) for cuts in proven.values() for cut in cuts}
    good = {name: [cut for cut in cuts if obstacles[cut] is None] for name, cuts in proven.items()}
    leads = {part: cut for cuts in good.values() for cut in cuts for part in cut.parts[1:]}
    findings = []
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if cuts := good.get(name):
            radial = max(slices.radial[cut] if cut.slices else search.evidence[cut].radial for cut in cuts)
            leak = max(leaks[cut].worst for cut in cuts)
            points = tuple(cut.slices for cut in cuts if cut.slices)
            words = slices_told(points, shape) if points else WORDS[cuts[0].granularity]
            joined = tuple(dict.fromkeys(part for cut in cuts for part in cut.joined))
            findings.append(
                Finding(name, cuts[0].granularity, cuts[0].rows, joined, radial, leak, words, shape, points)
            )
            continue
        others = [other for other in names[id(p)] if other != name]
        if name in leads:
            reason = f"belongs {'in part ' if leads[name].slices else ''}to the points of {leads[name].name}"
        elif name in proven:
            reason = str(obstacles[proven[name][0]])
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
    # Scattered weights enlarge what rounding leaves of a gradient that was zero before.
    return search.notes.get(name) or (DEAD if search.radial.get(name) == 0 else reasons[name])


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
    layouts = [cut.layout(name, part) for name, part in zip(cut.parts, parts, strict=True)]
    points = gather([part.detach() for part in parts], layouts)
    zero = (points == 0).all(1)
    return f"invariant, but row {int(zero.int().argmax())} is zero" if zero.any() else None
