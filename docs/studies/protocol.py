"""The protocol of the studies: which run comes next, which setting is chosen, and how much a difference means.

Nothing here trains: settings go out and losses come in. `docs/benchmarks/protocol.md` states the rules in words.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Estimate",
    "Node",
    "Run",
    "chosen",
    "estimate",
    "final_runs",
    "flat",
    "interior",
    "means_of",
    "next_of_sweep",
    "reached",
    "values",
]

FACTORS = {"lr": 2.0, "rest": 2.0, "decay": 4.0, "ratio": 2.0}
"""By which the values on the grid of a knob differ."""
FINAL_SEEDS = (100, 101, 102, 103, 104)
"""Of the runs at the chosen setting; those of the sweep count from 0."""
FACTORS_OF_LR = (0.25, 0.5, 2.0, 4.0)
"""At which it is measured how much a method minds its rate, with the first two of the final seeds."""
VALUES = 5
"""That are tried on each knob at least, with all others at the chosen values."""
REPEATED = 3
"""How many of the best settings get more seeds."""
SEEDS = 3
"""Of each of these, before diagonal neighbours are tried."""
LEVEL = 1e-4
"""By how much mean losses may differ and count as equal."""

Node = tuple[int, ...]
"""A setting: one integer k per knob that is swept, whose value is centre · factorᵏ."""
Losses = Mapping[tuple[Node, int], float]
"""What a sweep has found: held-out losses by setting and seed, infinite where a run diverged."""


class Run(NamedTuple):
    """A run to be made."""

    phase: str
    """``"sweep"``, ``"final"``, or ``"rates"`` for those at multiples of the chosen rate."""
    values: dict[str, float]
    """Of the knobs."""
    seed: int
    node: Node
    """In the sweep the setting, afterwards the chosen one."""


def values(knobs: Mapping[str, float], node: Node) -> dict[str, float]:
    """The values of the knobs at `node`; `knobs` has their centres. A node of fewer integers is about the first knobs, and the
    others are at their centres."""
    whole = (*node, *[0] * (len(knobs) - len(node)))
    return {name: centre * FACTORS[name] ** k for (name, centre), k in zip(knobs.items(), whole, strict=True)}


def next_of_sweep(dimension: int, losses: Losses, budget: int) -> tuple[Node, int] | None:
    """Setting and seed of the next run of a sweep over `dimension` knobs; None after `budget` runs.

    Where the best setting has fewer seeds than others then, or is not in the interior of what was tried, the sweep goes on until
    that is mended, up to twice `budget`. A function of what has been found, so that a sweep may stop anywhere. In this order, about
    the best setting so far:

    1. where every run diverged, a smaller rate;
    2. both neighbours on each knob, then further ones until there are `VALUES` with the best inside;
    3. further seeds for the best `REPEATED` settings, `SEEDS` each;
    4. the diagonal neighbours, which change the rate and another knob, while there are runs left for 2 and 3 about a better one;
    5. one more seed each for the best `REPEATED`, again and again.
    """
    if not losses:
        return (0,) * dimension, 0
    means = means_of(losses)
    best = _ranked(means)[0]
    seeds = {node: {seed for other, seed in losses if other == node} for node in means}
    settled = len(seeds[best]) == max(map(len, seeds.values())) and interior(best, means)
    if len(losses) >= 2 * budget or (len(losses) >= budget and settled):
        return None
    if math.isinf(means[best]):
        return _moved(min(means), 0, -1), 0
    room = budget - len(losses) >= SEEDS + 2 * VALUES
    return next(
        itertools.chain(
            ((node, 0) for node in _cross(best, means)),
            _repeats(means, seeds, SEEDS),
            ((node, 0) for node in _diagonals(best) if room and node not in means),
            *(_repeats(means, seeds, count) for count in range(SEEDS + 1, budget + 1)),
        )
    )


def interior(node: Node, tried: Iterable[Node]) -> bool:
    """Whether on each knob at least `VALUES` values next to each other were tried with the others at `node`, and larger and
    smaller ones than that of `node` are among them."""
    return next(_cross(node, tried), None) is None


def chosen(losses: Losses) -> Node:
    """The best setting of those with the most seeds; one of which a run diverged only if there is no other."""
    counts: dict[Node, int] = {}
    for node, _ in losses:
        counts[node] = counts.get(node, 0) + 1
    means = means_of(losses)
    ended = [node for node in means if math.isfinite(means[node])] or [*means]
    most = max(counts[node] for node in ended)
    return _ranked({node: means[node] for node in ended if counts[node] == most})[0]


def flat(losses: Losses, node: Node, more: float) -> tuple[Node, Node]:
    """The smallest and the largest rate about that of `node` up to which all were tried with the other knobs at `node`, with mean
    losses that are larger by `more` at most."""
    means = means_of(losses)

    def end(step: int) -> Node:
        return next(
            _moved(node, 0, step * n)
            for n in itertools.count()
            if (after := _moved(node, 0, step * (n + 1))) not in means or means[after] > means[node] + more
        )

    return end(-1), end(1)


def final_runs(knobs: Mapping[str, float], node: Node) -> list[Run]:
    """What is run at the chosen setting: fresh seeds, and two of them at multiples of its rate."""
    setting = values(knobs, node)
    runs = [Run("final", setting, seed, node) for seed in FINAL_SEEDS]
    for factor in FACTORS_OF_LR:
        at = {**setting, "lr": setting["lr"] * factor}
        runs += [Run("rates", at, seed, node) for seed in FINAL_SEEDS[:2]]
    return runs


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float
    """Standard error of the mean."""
    low: float
    """Lower end of the 95 % interval of Student's t."""
    high: float
    """Its upper end."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside of the interval."""
        return self.low > 0.0 or self.high < 0.0


def estimate(sample: Sequence[float]) -> Estimate:
    """The mean of `sample`, two to ten values, with its 95 % interval. For a paired comparison pass the differences, seed by seed."""
    mean = statistics.fmean(sample)
    error = statistics.stdev(sample) / math.sqrt(len(sample))
    half = _T[len(sample) - 1] * error
    return Estimate(mean, error, mean - half, mean + half)


def reached(curve: Sequence[float], target: float) -> float:
    """The share of a run after which its loss is at most `target`, infinite if it never is.

    `curve` has the losses after equal parts of the run, the last at its end; between them they are taken for linear.
    """
    if curve[0] <= target:
        return 1 / len(curve)
    for i, (before, after) in enumerate(itertools.pairwise(curve), 1):
        if after <= target:
            return (i + (before - target) / (before - after)) / len(curve)
    return math.inf


def means_of(losses: Losses) -> dict[Node, float]:
    """Mean loss over the seeds of each setting, less what a seed adds to the loss of seed 0 on average of the settings with both."""
    added: dict[int, float] = {}
    for seed in {seed for _, seed in losses}:
        pairs = [
            loss - losses[node, 0] for (node, other), loss in losses.items() if other == seed and (node, 0) in losses
        ]
        added[seed] = statistics.fmean([more for more in pairs if math.isfinite(more)] or [0.0])
    found: dict[Node, list[float]] = {}
    for (node, seed), loss in losses.items():
        found.setdefault(node, []).append(loss - added[seed])
    return {node: statistics.fmean(sample) for node, sample in found.items()}


def _ranked(means: Mapping[Node, float]) -> list[Node]:
    """Settings from the best on, which is the one nearest to the centres of those whose losses are within `LEVEL` of the least: a
    knob without effect stays where it is."""
    left, found = dict(means), list[Node]()
    while left:
        level = min(left.values()) + LEVEL
        found.append(min((node for node in left if left[node] <= level), key=lambda node: (sum(map(abs, node)), node)))
        del left[found[-1]]
    return found


def _cross(best: Node, tried: Iterable[Node]) -> Iterator[Node]:
    """What is to be tried on the lines through `best`: neighbours first, then what is missing to `VALUES`, in turn on both sides."""
    tried = set(tried)
    for knob in range(len(best)):
        for step in (1, -1):
            if (node := _moved(best, knob, step)) not in tried:
                yield node
    for knob in range(len(best)):
        above, below = (next(n for n in itertools.count(1) if _moved(best, knob, s * n) not in tried) for s in (1, -1))
        while above + below - 1 < VALUES:
            if above <= below:
                yield _moved(best, knob, above)
                above += 1
            else:
                yield _moved(best, knob, -below)
                below += 1


def _diagonals(best: Node) -> Iterator[Node]:
    """Neighbours that differ in the rate and in one other knob: `decay` first, which with the rate decides how far rows turn."""
    for knob in range(len(best) - 1, 0, -1):
        for step, other in itertools.product((1, -1), (-1, 1)):
            yield _moved(_moved(best, 0, step), knob, other)


def _repeats(means: Mapping[Node, float], seeds: Mapping[Node, set[int]], count: int) -> Iterator[tuple[Node, int]]:
    """Seeds that the best settings lack to `count`."""
    for seed in range(count):
        for node in _ranked(means)[:REPEATED]:
            if seed not in seeds[node] and math.isfinite(means[node]):
                yield node, seed


def _moved(node: Node, knob: int, step: int) -> Node:
    return (*node[:knob], node[knob] + step, *node[knob + 1 :])


_T = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 6: 2.44691, 7: 2.36462, 8: 2.30600, 9: 2.26216}
"""Student's t at 97.5 % by degrees of freedom."""
