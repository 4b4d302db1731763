"""Plots that a person reads at a glance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from . import toy
from .table import Row, title
from .training import Record

__all__ = ["accuracies", "toy_curves", "training_curves"]


def toy_curves(runs: list[toy.Run], path: Path) -> None:
    """One column per start, one row per norm: gradients over steps of each method's run, written to `path` as PNG."""
    norms = {"grad_w": "‖∇_W‖", "grad_v": "‖∇_V‖", "grad_g": "‖∇_g‖"}
    scales = list(toy.SCALES)
    plt = _pyplot()
    figure, panels = plt.subplots(len(norms), len(scales), figsize=(3.6 * len(scales), 8), sharex=True, sharey="row")
    for run in runs:
        for row, norm in zip(panels, norms, strict=True):
            row[scales.index(run.scale)].plot(getattr(run, norm), linewidth=1.1, label=run.method)
    for panel, scale in zip(panels[0], scales, strict=True):
        panel.set_title(f"W₂ as {scale}" if scale in ("PyTorch", "He") else f"W₂ {scale}")
    for row, label in zip(panels, norms.values(), strict=True):
        row[0].set_ylabel(label)
    for panel in panels.flat:
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    panels[0][0].legend(fontsize=7, loc="best")
    _save(figure, path)


def training_curves(records: Sequence[Record], path: Path) -> None:
    """Training loss and accuracy over epochs, a line for each row of the table, of its first seed, written to `path` as PNG."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for record in records:
        epochs = range(1, len(record.epochs) + 1)
        label = f"{title(record.settings)}, lr {record.settings['lr']:g}"
        left.plot(epochs, [epoch.loss for epoch in record.epochs], label=label)
        right.plot(epochs, [epoch.accuracy for epoch in record.epochs], label=label)
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel("accuracy in %")
    right.legend(fontsize=7, loc="lower right")
    for panel in (left, right):
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
    _save(figure, path)


def accuracies(rows: Sequence[Row], path: Path) -> None:
    """The table as a picture: each method's accuracies, their mean ± one standard deviation, and the published number."""
    plt = _pyplot()
    figure, panel = plt.subplots(figsize=(7, 0.6 + 0.4 * len(rows)))
    for place, row in enumerate(rows):
        if row.accuracies:
            several = len(row.accuracies) > 1
            mean, std = statistics.fmean(row.accuracies), statistics.stdev(row.accuracies) if several else None
            panel.errorbar(mean, place, xerr=std, fmt="o", color="#2171b5", capsize=3)
            panel.plot(row.accuracies, [place] * len(row.accuracies), ".", color="#2171b5", alpha=0.4)
        if row.published != "–":
            panel.plot(float(row.published.split()[0]), place, "x", color="#d94801")
    panel.set_yticks(range(len(rows)), [f"{row.network}, {row.title}" for row in rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("test accuracy in %: ● here, mean ± std;  × published, 200 epochs")
    panel.grid(alpha=0.3)
    _save(figure, path)


def _pyplot() -> Any:
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    _pyplot().close(figure)
