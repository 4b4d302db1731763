"""The table of the starts, from the stored runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from . import pages
from .batchnorm import BatchNorm
from .methods import load
from .runs import hours, methods_in, read
from .starts import STARTS

__all__ = ["generated"]

_KEY = "accuracy"


def generated(results: Path) -> str:
    """Markdown: test accuracies of each method from each start, and differences to the start as it is drawn where 0 is outside of
    their 95 % intervals."""
    drawn = pages.rows(BatchNorm, results / BatchNorm.name)
    started = [pages.rows(start, results / start.name) for start in STARTS]
    lines = [
        f"| {pages.SCORES[_KEY].heading} | as drawn | {' | '.join(start.title for start in STARTS)} |",
        "| --- |" + " ---: |" * (1 + len(STARTS)),
    ]
    there = [name for name in drawn if any(name in found for found in started)]
    for name in there:
        base = replace(drawn[name], final=drawn[name].final[: STARTS[0].seeds])
        cells = [_changed(found[name], base) if name in found else "" for found in started]
        lines.append(f"| {base.title} | {' | '.join([pages.mean(base, _KEY), *cells])} |")
    missing = [load(name).title for name in methods_in(BatchNorm, results / BatchNorm.name) if name not in there]
    tail = [f"Not run yet: {', '.join(missing)}."] if missing else []
    folders = [(start, results / start.name) for start in STARTS]
    made = [record for start, folder in folders for name in methods_in(start, folder) for record in read(folder, name)]
    took = [f"Without the runs as drawn, {hours(made):.1f} hours of one core."] if made else []
    return "\n\n".join(["\n".join(lines), *tail, *took])


def _changed(row: pages.Row, drawn: pages.Row) -> str:
    """The mean, with the difference to the start as it is drawn if that is one."""
    text = pages.mean(row, _KEY)
    if row.diverged or drawn.diverged:
        return text
    found = row.minus(drawn, _KEY)
    return f"**{text}** ({found.mean:+.2f})" if found.excludes_zero else text
