"""Plots that a person reads at a glance."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from .unbalanced import STARTS, Config, Outcome

__all__ = ["loss_curves"]


def loss_curves(outcomes: list[Outcome], config: Config, path: Path) -> None:
    """One panel per method: the loss from both starts over epochs, written to `path` as PNG."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(outcomes), figsize=(3.2 * len(outcomes), 3.4), sharex=True, sharey=True)
    looks = {
        STARTS[0]: {"color": "#9ecae1", "linewidth": 5.0, "label": "balanced start"},
        STARTS[1]: {
            "color": "#d94801",
            "linewidth": 1.5,
            "linestyle": "--",
            "label": f"rows × {config.scale:g}, ÷ {config.scale:g}",
        },
    }
    for panel, outcome in zip(panels, outcomes, strict=True):
        for start in STARTS:
            means = outcome.epoch_means[start]
            panel.plot(range(1, len(means) + 1), means, **looks[start])
        verdict = "bitwise equal" if outcome.bitwise_equal else f"apart by {outcome.largest_difference:.2g}"
        panel.set_title(f"{outcome.method}\n{verdict}", fontsize=11)
        panel.set_yscale("log")
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("training loss")
    panels[0].legend(fontsize=8, loc="best")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
