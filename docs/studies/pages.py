"""The tables and the picture of a study's page, from the stored runs: what stands between the two marks, a pure function of these."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from . import protocol
from .loop import FollowUp, Study
from .methods import load
from .runs import Record, Sweep, final_runs, hours, matched, methods_in, read, sweep_in

__all__ = ["SCORES", "Row", "compared", "difference", "draw", "generated", "mean", "ordered", "rows", "setting"]

_NEARLY = 0.02
"""How much more loss rates may have that are told to be nearly as good as the best."""
_FRACTIONS = {0.125: "⅛", 0.25: "¼", 0.5: "½"}
_COLOR, _BASELINE = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Score:
    """What the final runs are compared by."""

    heading: str
    digits: int
    sign: int
    """-1 where more is better."""


SCORES = {"accuracy": Score("test accuracy in %", 2, -1), "loss": Score("test loss", 4, 1)}


@dataclass(frozen=True)
class Row:
    """What is known of a method whose runs are complete."""

    title: str
    values: dict[str, float]
    """The chosen ones."""
    interior: bool
    """Whether the sweep that chose them has smaller and larger values on each knob."""
    final: list[Record]
    """One per seed, in the order of `protocol.FINAL_SEEDS`."""
    at_multiples: dict[float, float]
    """Held-out loss by the multiple of the chosen rate, in ascending order, infinite where a run diverged: means over the same seeds
    after the sweep, or, in a `FollowUp`, `Sweep.at_multiples` of the sweep before it."""

    def of(self, key: str) -> list[float]:
        """A result of the final runs, NaN of one that diverged."""
        return [record.get(key, math.nan) if record["loss"] is not None else math.nan for record in self.final]

    @property
    def diverged(self) -> int:
        """How many of the final runs did."""
        return sum(record["loss"] is None for record in self.final)

    def minus(self, other: Row, key: str) -> protocol.Estimate:
        """The difference of a test result, seed by seed."""
        pairs = zip(self.of(f"test {key}"), other.of(f"test {key}"), strict=True)
        return protocol.estimate([a - b for a, b in pairs])

    def steps(self, target: float, steps: int) -> str:
        """Of the final runs to a held-out loss of `target`, on average; how many get there, if not all do."""
        ended = [r for r in self.final if r["loss"] is not None]
        shares = [protocol.reached([*r["curve"][:-1], r["loss"]], target) for r in ended]  # curves are rounded
        there = [share for share in shares if share <= 1]
        few = f"{len(there)} of {len(self.final)} runs"
        return f"{statistics.fmean(there) * steps:,.0f}" if len(there) == len(self.final) else few


def rows(study: type[Study], folder: Path) -> dict[str, Row]:
    """The methods of a study whose runs are complete, by name."""
    found = ((name, _row(study, name, folder)) for name in methods_in(study, folder))
    return {name: row for name, row in found if row is not None}


def generated(study: type[Study], folder: Path, later: Sequence[type[Study]] = ()) -> str:
    """Markdown: the comparison, how sensitive each method is to its rate, its best rates in the `later` studies, which come after this
    one, and what it took."""
    found, baseline = rows(study, folder), study.methods[0]
    parts = []
    if baseline in found:
        parts += [_comparison(found, baseline, study), *compared(found, study)]
        if issubclass(study, FollowUp):
            parts.append(_by_seed(found, study))
        else:
            parts.append(f"![{SCORES[study.scores[0]].heading} and rates]({study.name}.svg)")
        parts.append(_sensitivity(found, study))
        if later:
            parts += _best_rates((study, *later), folder.parent)
    records = {name: read(folder, name) for name in methods_in(study, folder)}
    missing = [f"{load(name).title} ({len(records[name])} runs)" for name in records if name not in found]
    if missing:
        parts.append(f"Not finished: {', '.join(missing)}.")
    if any(records.values()):
        parts.append(_took([*dict.fromkeys((_sweep_of(study), study, *later))], folder.parent))
    return "\n\n".join(parts)


def _took(studies: Sequence[type[Study]], results: Path) -> str:
    """How many runs there are, the hours of all, the seconds of one in each study, and on what they ran."""
    made, medians = list[Record](), list[str]()
    for study in studies:
        folder = results / study.name
        stored = [record for name in methods_in(study, folder) for record in read(folder, name)]
        made += stored
        if stored:
            median = statistics.median(record["seconds"] for record in stored)
            medians.append(f"{median:.0f} s" + f" ({study.title})" * (len(studies) > 1))
    machines = sorted({record["on"] for record in made})
    return f"{len(made):,} runs, {hours(made):.1f} hours of one core ({'; '.join(machines)}). The median run takes {', '.join(medians)}."


def _sweep_of(study: type[Study]) -> type[Study]:
    """The study whose sweep has chosen the settings."""
    if not issubclass(study, FollowUp):
        return study
    assert study.after is not None
    return study.after


def _row(study: type[Study], name: str, folder: Path) -> Row | None:
    swept, records = sweep_in(_sweep_of(study), name, folder.parent), read(folder, name)
    if swept is None:
        return None
    results, missing = matched(final_runs(study, swept.method.knobs, swept.best), records)
    if missing:
        return None
    final = [record for record in results if record["phase"] == "final"]
    follows = issubclass(study, FollowUp)
    at_multiples = swept.at_multiples if follows else _at_multiples(results, swept.values["lr"])
    return Row(swept.method.title, swept.values, swept.interior, final, at_multiples)


def _at_multiples(results: Sequence[Record], lr: float) -> dict[float, float]:
    """Mean losses of runs at multiples of `lr`, and of those at it with the same seeds."""
    seeds = {record["seed"] for record in results if record["phase"] == "rates"}
    found: dict[float, list[Record]] = {}
    for record in results:
        if record["seed"] in seeds:
            found.setdefault(record["values"]["lr"] / lr, []).append(record)
    return {factor: _mean(found[factor]) for factor in sorted(found)}


def _comparison(found: dict[str, Row], baseline: str, study: type[Study]) -> str:
    base = found[baseline]
    target = max((loss for loss in base.of("loss") if not math.isnan(loss)), default=None)
    knobs = [knob for knob in protocol.FACTORS if any(knob in row.values for row in found.values())]
    columns = ["method", *knobs]
    for key in study.scores:
        columns += [SCORES[key].heading, "difference" + f" to {base.title}" * (key == study.scores[0])]
    columns += [] if target is None else [f"steps to {target:.3f}"]
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row in ordered(found, study):
        cells = [row.title + " (at an edge)" * (not row.interior)]
        cells += [f"{row.values[knob]:.3g}" if knob in row.values else "–" for knob in knobs]
        for key in study.scores:
            cells += [mean(row, key), "–" if row is base else difference(row, base, key)]
        cells += [] if target is None else [row.steps(target, study.steps)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(found: dict[str, Row], study: type[Study]) -> list[str]:
    """The differences between the pairs of methods that the study names, as a table; none before the first pair is complete."""
    pairs = [(found[ours], found[theirs]) for ours, theirs in study.pairs if ours in found and theirs in found]
    if not pairs:
        return []
    headings = " | ".join(SCORES[key].heading for key in study.scores)
    lines = [f"| difference | {headings} |", "| --- |" + " ---: |" * len(study.scores)]
    for ours, theirs in pairs:
        cells = " | ".join(difference(ours, theirs, key) for key in study.scores)
        lines.append(f"| {ours.title} – {theirs.title} | {cells} |")
    return ["\n".join(lines)]


def _by_seed(found: dict[str, Row], study: type[Study]) -> str:
    """The results of single runs, where no picture shows them."""
    score, best_first = SCORES[study.scores[0]], ordered(found, study)
    seeds = [str(record["seed"]) for record in best_first[0].final]
    lines = [f"| {score.heading}, seed | {' | '.join(seeds)} |", "| --- |" + " ---: |" * len(seeds)]
    for row in best_first:
        values = row.of(f"test {study.scores[0]}")
        cells = ["diverged" if math.isnan(value) else f"{value:.{score.digits}f}" for value in values]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def setting(row: Row) -> str:
    """The values of the knobs."""
    return ", ".join(f"{knob} {value:.3g}" for knob, value in row.values.items())


def mean(row: Row, key: str) -> str:
    """Of the final runs of a method, ± its standard error."""
    if row.diverged:
        return f"{row.diverged} of {len(row.final)} diverged"
    found, digits = protocol.estimate(row.of(f"test {key}")), SCORES[key].digits
    return f"{found.mean:.{digits}f} ± {found.error:.{digits}f}"


def difference(ours: Row, theirs: Row, key: str) -> str:
    """Of two methods, seed by seed, with its 95 % interval; bold where 0 is outside."""
    if ours.diverged or theirs.diverged:
        return "–"
    found, digits = ours.minus(theirs, key), SCORES[key].digits
    text = f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"**{text}**" if found.excludes_zero else text


def _multiple(factor: float) -> str:
    return _FRACTIONS.get(factor, f"{factor:g}")


def _sensitivity(found: dict[str, Row], study: type[Study]) -> str:
    factors = sorted({factor for row in found.values() for factor in row.at_multiples})
    heading = " | ".join(map(_multiple, factors))
    lines = [f"| held-out loss at | {heading} × the chosen lr |", "| --- |" + " ---: |" * len(factors)]
    for row in ordered(found, study):
        losses = [row.at_multiples.get(factor) for factor in factors]
        cells = ["–" if loss is None else "diverged" if math.isinf(loss) else f"{loss:.3f}" for loss in losses]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _best_rates(studies: Sequence[type[Study]], results: Path) -> list[str]:
    """Two tables; – where a sweep is not complete. The rates of the least held-out loss in each study, with that loss in
    parentheses, and values of `lr` about it that are nearly as good; and what the setting of the first study costs in the others.
    Both say of how many runs."""
    first, *others = studies
    again = {name for study in others for name in methods_in(study, results / study.name)}
    names = [name for name in methods_in(first, results / first.name) if name in again]
    sweeps = {(study, name): sweep_in(study, name, results) for study in studies for name in names}
    swept = {
        knob for (study, _), found in sweeps.items() if found is not None and study is not first for knob in found.knobs
    }
    if not swept:
        return []
    knobs, titles = [knob for knob in protocol.FACTORS if knob in swept], [study.title for study in studies]
    best = [
        f"| best {', '.join(knobs)} (held-out loss, runs); every lr within {_NEARLY} of it | {' | '.join(titles)} |",
        "| --- |" + " ---: |" * len(studies),
    ]
    costs = [
        f"| loss more at the setting of {first.title} (runs) | {' | '.join(titles[1:])} |",
        "| --- |" + " ---: |" * len(others),
    ]
    for name in names:
        found = [sweeps[study, name] for study in studies]
        best.append(f"| {load(name).title} | {' | '.join('–' if s is None else _rates(s, knobs) for s in found)} |")
        costs.append(f"| {load(name).title} | {' | '.join('–' if s is None else _cost(s) for s in found[1:])} |")
    return ["\n".join(best), "\n".join(costs)]


def _rates(sweep: Sweep, knobs: Sequence[str]) -> str:
    """The best values of `knobs`, the mean loss there, the number of runs, and the range of `lr` that is nearly as good."""
    found = sweep.at(sweep.best)
    text = ", ".join(f"{sweep.values[knob]:.3g}" if knob in sweep.values else "–" for knob in knobs)
    if not all(map(math.isfinite, found)):
        return "diverged"
    ends = protocol.flat(sweep.losses, sweep.best, _NEARLY)
    low, high = (protocol.values(sweep.method.knobs, end)["lr"] for end in ends)
    edge = ", at an edge" * (not sweep.interior)
    return f"{text} ({statistics.fmean(found):.3f}, {len(found)}{edge})" + f"; {low:.3g} – {high:.3g}" * (low < high)


def _cost(sweep: Sweep) -> str:
    """How much larger the loss is at the centres, and the number of runs there."""
    means, centre = protocol.means_of(sweep.losses), (0,) * len(sweep.best)
    more = means[centre] - means[sweep.best]
    return f"{more:+.3f} ({len(sweep.at(centre))})" if math.isfinite(more) else "diverged"


def ordered(found: dict[str, Row], study: type[Study]) -> list[Row]:
    """Best first, and last what diverged."""
    key = study.scores[0]

    def place(row: Row) -> tuple[int, float]:
        there = [value for value in row.of(f"test {key}") if not math.isnan(value)]
        return row.diverged, SCORES[key].sign * statistics.fmean(there or [0.0])

    return sorted(found.values(), key=place)


def _mean(records: Sequence[Record]) -> float:
    return statistics.fmean(float("inf") if r["loss"] is None else r["loss"] for r in records)


def draw(found: dict[str, Row], study: type[Study], path: Path) -> None:
    """Left the first score of all seeds with mean ± standard error, right the losses over multiples of the chosen rate."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    best_first, baseline, score = ordered(found, study), found.get(study.methods[0]), study.scores[0]
    with plt.rc_context({"svg.hashsalt": "retract", "svg.fonttype": "path"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.2 + 0.36 * len(best_first)), width_ratios=(3, 2))
        for place, row in enumerate(best_first):
            results, color = row.of(f"test {score}"), _BASELINE if row is baseline else _COLOR
            left.plot(results, [place] * len(row.final), "o", ms=4, color=color, alpha=0.35, mew=0)
            if not row.diverged:
                found_mean = protocol.estimate(results)
                left.errorbar(found_mean.mean, place, xerr=found_mean.error, fmt="|", ms=11, color=color, capsize=3)
            shown: dict[str, Any] = {"color": color} if row is baseline else {}
            right.plot([*row.at_multiples], [*row.at_multiples.values()], "o-", ms=3, lw=1.2, label=row.title, **shown)
        left.set_yticks(range(len(best_first)), [row.title for row in best_first])
        left.invert_yaxis()
        left.set_xlabel(f"{SCORES[score].heading}: {len(protocol.FINAL_SEEDS)} seeds, mean ± standard error")
        right.set_xscale("log", base=2)
        ticks = sorted((1.0, *protocol.FACTORS_OF_LR))
        right.set_xticks(ticks, [_multiple(factor) for factor in ticks])
        right.set_xlabel("multiple of the chosen lr")
        right.set_ylabel("held-out loss")
        right.legend(fontsize=6)
        for panel in (left, right):
            panel.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
