"""The tables of the page *Does it help?*, from the stored runs."""

from __future__ import annotations

from pathlib import Path

from . import pages
from .loop import Study
from .pages import SCORES, Row
from .runs import hours, methods_in, read

__all__ = ["generated", "total"]


def generated(study: type[Study], folder: Path) -> str:
    """Markdown: per method, best first, its rates, its score and whether it is ahead of the baseline."""
    found = pages.rows(study, folder)
    base, key = found.get(study.methods[0]), study.scores[0]
    if base is None:
        return "Being measured."
    lines = [
        f"| method | rates | {SCORES[key].heading} | difference to {base.title} | |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for row in pages.ordered(found, study):
        cells = [row.title, pages.setting(row), pages.mean(row, key)]
        cells += ["–", "baseline"] if row is base else [pages.difference(row, base, key), _verdict(row, base, key)]
        lines.append(f"| {' | '.join(cells)} |")
    missing = len(methods_in(study, folder)) - len(found)
    more = [f"Being measured: {missing} more."] * (missing > 0)
    return "\n\n".join(["\n".join(lines), *pages.compared(found, study), *more])


def _verdict(row: Row, base: Row, key: str) -> str:
    if row.diverged or base.diverged:
        return "diverged" if row.diverged else f"{base.title} diverged"
    found = row.minus(base, key)
    if not found.excludes_zero:
        return "not distinguishable"
    return "ahead" if (found.mean < 0.0) == (SCORES[key].sign > 0) else "behind"


def total(results: Path) -> str:
    """What all studies took."""
    made = [record for path in sorted(results.glob("*/*.json")) for record in read(path.parent, path.stem)]
    return f"All studies: {len(made):,} runs, {hours(made):.0f} hours of one core."
