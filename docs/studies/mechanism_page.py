"""The table of the angular updates, from the stored runs."""

from __future__ import annotations

import statistics
from pathlib import Path

from . import mechanism, pages
from .batchnorm import BatchNorm
from .methods import load
from .runs import Record, hours

__all__ = ["generated"]

SHARES = (1, 4, 8, 12, 15)
"""Sixteenths of a run after which the turn is shown, the mean over the sixteenth that follows."""


def generated(results: Path) -> str:
    """Markdown: turns of rows in the course of a run, and test accuracies with differences to the baseline, seed by seed."""
    stored = mechanism.stored(results, mechanism.settings(BatchNorm, results))
    base, count = stored[mechanism.METHODS[0]], len(mechanism.SEEDS)
    if any(len(records) < count for records in stored.values()):
        return f"Not run yet: {sum(count - len(records) for records in stored.values())} of {count * len(stored)} runs are missing."
    shares = " | ".join(f"{share}/{mechanism.PARTS}" for share in SHARES)
    lines = [
        f"| turn of a row per step, in mrad, after | {shares} of the run | test accuracy in % | difference to {load(mechanism.METHODS[0]).title} |",
        "| --- |" + " ---: |" * (len(SHARES) + 2),
    ]
    for name, records in stored.items():
        title = (
            f"{load('psi_sgdm_nesterov').title} with the turns of {load(mechanism.METHODS[0]).title}"
            if name == mechanism.DRIVEN
            else load(name).title
        )
        turns = [_turn([record["turns"] for record in records], share) for share in SHARES]
        row = _row(records)
        gap = "–" if records is base else pages.difference(row, _row(base), "accuracy")
        lines.append(f"| {' | '.join([title, *turns, pages.mean(row, 'accuracy'), gap])} |")
    made = [record for records in stored.values() for record in records]
    return "\n".join(lines) + f"\n\n{count} seeds, {hours(made):.1f} hours of one core."


def _turn(turns: list[list[float]], share: int) -> str:
    """The mean over the runs, where all got so far."""
    if any(len(parts) <= share for parts in turns):
        return "–"
    return f"{1e3 * statistics.fmean(parts[share] for parts in turns):.1f}"


def _row(records: list[Record]) -> pages.Row:
    """The runs of a method."""
    return pages.Row("", records[0]["values"], True, records, {})
