"""The tables of final runs at settings that were chosen before, by fewer runs or by another sweep, from the stored runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from . import pages
from .loop import Study
from .pages import SCORES, Row
from .runs import at_seeds, read

__all__ = ["generated"]


def generated(studies: Sequence[type[Study]], results: Path) -> str:
    """Markdown: by study, the methods with such runs on all seeds, and how these differ from the later ones; and how the other methods,
    at the later and at an earlier choice, differ from such runs of the baseline."""
    parts = []
    for study in studies:
        found, key = pages.rows(study, results / study.name), study.scores[0]
        earlier = [(old, row) for name, row in found.items() for old in _earlier(row, name, results / study.name)]
        if not earlier:
            continue
        lines = [
            f"| {study.title}: at an earlier choice | rates | {SCORES[key].heading} | difference to the later choice |",
            "| --- | --- | ---: | ---: |",
        ]
        for old, row in earlier:
            lines.append(
                f"| {old.title} | {pages.setting(old)} | {pages.mean(old, key)} | {pages.difference(old, row, key)} |"
            )
        parts.append("\n".join(lines))
        base = found.get(study.methods[0])
        others = [(row.title, row) for row in pages.ordered(found, study) if row is not base]
        others += [(f"{old.title} at {pages.setting(old)}", old) for old, row in earlier if row is not base]
        parts += [_against(old, others, study) for old, row in earlier if row is base]
    return "\n\n".join(parts)


def _earlier(row: Row, name: str, folder: Path) -> Iterator[Row]:
    """A row for each other setting at which all seeds of the final runs of `row` are stored."""
    records, seeds = read(folder, name), [record["seed"] for record in row.final]
    settings = {tuple(record["values"].items()): record["values"] for record in records}
    for values in (each for each in settings.values() if each != row.values):
        final, missing = at_seeds(values, seeds, records)
        if missing is None:
            yield replace(row, values=values, final=final, at_multiples={})


def _against(old: Row, others: Sequence[tuple[str, Row]], study: type[Study]) -> str:
    """How others, each with its name, differ from the baseline at an earlier choice."""
    key = study.scores[0]
    lines = [
        f"| {study.title}: difference to {old.title} at {pages.setting(old)} | {SCORES[key].heading} |",
        "| --- | ---: |",
        *(f"| {name} | {pages.difference(row, old, key)} |" for name, row in others),
    ]
    return "\n".join(lines)
