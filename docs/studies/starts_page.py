"""The table of the starts, from the stored runs."""

from __future__ import annotations

from pathlib import Path

from . import pages, protocol
from .batchnorm import BatchNorm
from .methods import load
from .runs import Record, read
from .starts import STARTS

__all__ = ["generated", "write"]


def write(results: Path, folder: Path = pages.BENCHMARKS) -> None:
    """Write the generated part of the page."""
    pages.fill(folder / "starts.md", "starts", generated(results))


def generated(results: Path) -> str:
    """Markdown: test accuracies of each method from each start, and differences to the start as it is drawn where 0 is outside of
    their 95 % intervals."""
    seeds = protocol.FINAL_SEEDS[: STARTS[0].seeds]
    titles = " | ".join(start.title for start in STARTS)
    lines = [f"| test accuracy in % | as drawn | {titles} |", "| --- |" + " ---: |" * (1 + len(STARTS))]
    hours = 0.0
    for name, row in pages.rows(BatchNorm, results / BatchNorm.name).items():
        drawn = row.of("test accuracy")[: len(seeds)]
        cells = [row.title, _cell(drawn, drawn)]
        for start in STARTS:
            stored = read(results / start.name, name)
            hours += sum(record["seconds"] for record in stored) / 3600.0
            found = {record["seed"]: record for record in stored if record["values"] == row.values}
            cells.append(_cell([_accuracy(found[seed]) for seed in seeds], drawn) if len(found) == len(seeds) else "")
        if any(cells[2:]):
            lines.append(f"| {' | '.join(cells)} |")
    missing = [
        load(name).title
        for name in BatchNorm.methods
        if not any(line.startswith(f"| {load(name).title} |") for line in lines)
    ]
    tail = [f"Not run yet: {', '.join(missing)}."] if missing else []
    return "\n\n".join(["\n".join(lines), *tail, f"Without the runs as drawn, {hours:.1f} hours of one core."])


def _accuracy(record: Record) -> float:
    """In %; 10, that of guessing, where the run diverged."""
    accuracy: float = record["test accuracy"] if record["loss"] is not None else 10.0
    return accuracy


def _cell(ours: list[float], drawn: list[float]) -> str:
    mean = protocol.estimate(ours)
    text = f"{mean.mean:.1f} ± {mean.error:.1f}"
    change = protocol.estimate([a - b for a, b in zip(ours, drawn, strict=True)])
    return f"**{text}** ({change.mean:+.1f})" if change.low > 0 or change.high < 0 else text
