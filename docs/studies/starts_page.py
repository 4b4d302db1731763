"""The table of the starts, from the stored runs."""

from __future__ import annotations

from pathlib import Path

from . import pages, protocol
from .batchnorm import BatchNorm
from .methods import load
from .runs import Record, hours, read
from .starts import STARTS

__all__ = ["generated"]


def generated(results: Path) -> str:
    """Markdown: test accuracies of each method from each start, and differences to the start as it is drawn where 0 is outside of
    their 95 % intervals."""
    drawn = pages.rows(BatchNorm, results / BatchNorm.name)
    started = [pages.rows(start, results / start.name) for start in STARTS]
    lines = [
        f"| test accuracy in % | as drawn | {' | '.join(start.title for start in STARTS)} |",
        "| --- |" + " ---: |" * (1 + len(STARTS)),
    ]
    there = [name for name in drawn if any(name in found for found in started)]
    for name in there:
        base = _accuracies(drawn[name].final[: STARTS[0].seeds])
        cells = [_changed(_accuracies(found[name].final), base) if name in found else "" for found in started]
        lines.append(f"| {drawn[name].title} | {' | '.join([_mean(base), *cells])} |")
    missing = [load(name).title for name in BatchNorm.methods if name not in there]
    tail = [f"Not run yet: {', '.join(missing)}."] if missing else []
    made = [record for start in STARTS for name in start.methods for record in read(results / start.name, name)]
    took = [f"Without the runs as drawn, {hours(made):.1f} hours of one core."] if made else []
    return "\n\n".join(["\n".join(lines), *tail, *took])


def _accuracies(records: list[Record]) -> list[float]:
    """In %; 10, that of guessing, where a run diverged."""
    return [record["test accuracy"] if record["loss"] is not None else 10.0 for record in records]


def _mean(accuracies: list[float]) -> str:
    found = protocol.estimate(accuracies)
    return f"{found.mean:.1f} ± {found.error:.1f}"


def _changed(accuracies: list[float], drawn: list[float]) -> str:
    """The mean, with the difference to the start as it is drawn if that is one."""
    found = protocol.estimate([a - b for a, b in zip(accuracies, drawn, strict=True)])
    text = _mean(accuracies)
    return f"**{text}** ({found.mean:+.1f})" if found.low > 0 or found.high < 0 else text
