"""The tables of the page *Does it help?*, from the stored runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from . import pages, protocol
from .loop import Study
from .pages import SCORES

__all__ = ["generated", "total"]


def generated(study: type[Study], folder: Path) -> str:
    """Markdown: per method, best first, its rates, its score and whether it is ahead of the baseline."""
    found = pages.rows(study, folder)
    base, key = found.get(study.methods[0]), study.scores[0]
    if base is None:
        return "Being measured."
    score = SCORES[key]
    lines = [
        f"| method | rates | {score.heading} | difference to {base.title} | |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for row in pages.ordered(found, study):
        ours, theirs = row.of(f"test {key}"), base.of(f"test {key}")
        mean = protocol.estimate(ours)
        rates = ", ".join(f"{knob} {value:.3g}" for knob, value in row.values.items())
        cells = [row.title, rates, f"{mean.mean:.{score.digits}f} ± {mean.error:.{score.digits}f}"]
        cells += (
            ["–", "baseline"]
            if row is base
            else [pages.difference(ours, theirs, score.digits), _verdict(ours, theirs, score.sign)]
        )
        lines.append(f"| {' | '.join(cells)} |")
    missing = len(study.methods) - len(found)
    return "\n".join(lines) + f"\n\n{missing} more are being measured." * (missing > 0)


def _verdict(ours: Sequence[float], theirs: Sequence[float], sign: int) -> str:
    """Of pairs of seeds; `sign` is -1 where more is better."""
    found = protocol.estimate([sign * (a - b) for a, b in zip(ours, theirs, strict=True)])
    return "ahead" if found.high < 0 else "behind" if found.low > 0 else "level"


def total(results: Path) -> str:
    """What all studies took."""
    made = [record for path in sorted(results.glob("*/*.json")) for record in json.loads(path.read_text())["runs"]]
    hours = sum(record["seconds"] for record in made) / 3600.0
    return f"All studies: {len(made):,} runs, {hours:.0f} hours of one core."
