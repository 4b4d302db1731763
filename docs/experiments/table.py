"""Tables 1 and 2 of Yi (UAI 2022) from the ``run.json`` files of `cifar` runs, beside the published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retract.errors import RetractError

from .cifar import Config
from .methods import METHODS
from .pickles import shown
from .training import Record

__all__ = ["PUBLISHED", "Row", "collect", "rows", "title"]

_COLUMNS = ("sgd", "adam", "sgdg", "psi-sgd", "psi-sgdm")
_TABLE_1 = {  # without a regularizer: mean and standard deviation of five runs
    ("cifar10", 20): "91.14±.10 89.90±.17 91.38±.21 92.25±.03 92.41±.12",
    ("cifar10", 32): "91.32±.23 90.40±.32 92.48±.35 93.56±.08 93.30±.14",
    ("cifar10", 44): "91.95±.14 91.02±.18 92.99±.12 93.90±.16 93.39±.11",
    ("cifar10", 56): "92.19±.21 91.49±.12 93.11±.16 94.08±.15 93.90±.16",
    ("cifar100", 20): "65.53±.51 63.35±.06 68.19±.24 69.11±.07 68.41±.21",
    ("cifar100", 32): "67.41±.21 64.43±.11 70.13±.28 70.81±.08 70.14±.13",
    ("cifar100", 44): "67.72±.31 65.03±.38 71.32±.12 71.94±.21 72.03±.14",
    ("cifar100", 56): "68.02±.26 65.77±.13 71.46±.06 72.88±.24 72.40±.16",
}
_TABLE_2 = {  # with an L2 term in the whole loss, or SGDG's penalty: single numbers
    ("cifar10", 20): "92.35 90.89 91.99 92.49 92.70",
    ("cifar10", 32): "93.64 91.83 92.53 93.75 93.80",
    ("cifar10", 44): "93.74 91.85 93.30 94.15 93.92",
    ("cifar10", 56): "94.19 91.78 93.37 93.98 93.99",
    ("cifar100", 20): "68.62 65.66 68.67 69.62 69.64",
    ("cifar100", 32): "70.67 67.72 70.49 71.21 71.07",
    ("cifar100", 44): "71.31 68.24 71.49 72.03 72.00",
    ("cifar100", 56): "72.44 68.78 71.56 73.05 72.62",
}
PUBLISHED = {
    (*network, method, regularized): number.replace("±.", " ± 0.")
    for regularized, table in ((False, _TABLE_1), (True, _TABLE_2))
    for network, line in table.items()
    for method, number in zip(_COLUMNS, line.split(), strict=True)
}
"""Test accuracy in percent after 200 epochs, by data set, depth, method and whether there was a regularizer."""


@dataclass(frozen=True)
class Row:
    """One line of the table: the runs that differ in nothing but their seed."""

    settings: dict[str, Any]
    """Without the seed."""
    accuracies: tuple[float, ...]
    """After the last epoch, in percent; of the runs that did not diverge."""
    losses: tuple[float, ...]
    """Of training, in the last epoch; likewise."""
    diverged: int
    """How many did."""

    @property
    def title(self) -> str:
        """The method and its regularizer."""
        return title(self.settings)

    @property
    def network(self) -> str:
        """Data set and network."""
        s = self.settings
        options = [f"batch {s['batch']}" * (s["batch"] != 128), "bfloat16" * s["bf16"]]
        return ", ".join([f"{s['dataset'].replace('cifar', 'CIFAR-')} ResNet-{s['depth']}", *filter(None, options)])

    @property
    def told(self) -> str:
        """Mean ± standard deviation (number of seeds), and how many runs diverged."""
        parts = []
        if self.accuracies:
            std = (
                f" ± {statistics.stdev(self.accuracies):.2f} ({len(self.accuracies)})"
                if len(self.accuracies) > 1
                else ""
            )
            parts.append(f"{statistics.fmean(self.accuracies):.2f}{std}")
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        return ", ".join(parts)

    @property
    def published(self) -> str:
        """The paper's number for this network, method and regularizer, for runs on the whole training set, or a dash: Table 1
        without a regularizer, Table 2 for SGD and Adam with L2 5e-4 and SGDG with α = 0.1. Its PSI columns there put an L2 term
        into the whole loss, which PSI groups refuse, so they have no counterpart here."""
        s = self.settings
        regularizer = s["weight_decay"], s["orthogonality"]
        second = {"sgd": (5e-4, 0.0), "adam": (5e-4, 0.0), "sgdg": (0.0, 0.1)}.get(s["method"])
        if s["images"] or regularizer not in ((0.0, 0.0), second):
            return "–"
        return PUBLISHED.get((s["dataset"], s["depth"], s["method"], regularizer == second), "–")


def title(settings: dict[str, Any]) -> str:
    """The method of a run, and its regularizer."""
    method, decay, alpha = METHODS[settings["method"]], settings["weight_decay"], settings["orthogonality"]
    of = "" if method.manifold is None else " of the rest"
    parts = [method.title, f"α = {alpha:g}" * (alpha > 0), f"decay{of} {decay:g}" * (decay > 0)]
    return ", ".join(part for part in parts if part)


def collect(folders: Sequence[Path]) -> list[Record]:
    """The finished runs of `cifar` under `folders`. Raises `RetractError` if there are none, and naming a file that is not what a
    run writes."""
    records = []
    for path in (path for folder in folders for path in sorted(folder.rglob("run.json"))):
        record = Record.read(path)
        if "dataset" in record.settings:
            _check(record.settings, path)
        records.append(record)
    finished = [record for record in records if record.finished and "dataset" in record.settings]
    if not finished:
        raise RetractError(f"no finished run of cifar under {', '.join(map(str, folders))}: {len(records)} unfinished")
    return finished


def _check(settings: dict[str, Any], path: Path) -> None:
    usual = asdict(Config())
    fits = set(settings) == set(usual) and all(isinstance(settings[key], (type(usual[key]), int)) for key in usual)
    if not fits or settings["dataset"] not in ("cifar10", "cifar100") or settings["method"] not in METHODS:
        raise RetractError(
            f"{path} is not the run.json of a run of cifar: {shown(settings)}; take it out of the folder"
        )


def rows(records: Sequence[Record], held_out: bool) -> list[Row]:
    """The lines of the table, by network, then in the order of `METHODS`; of the runs of sweeps if `held_out`, else of those that
    were scored on the test set."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.settings["held_out"] == held_out:
            rest = {key: value for key, value in record.settings.items() if key != "seed"}
            groups.setdefault(repr(sorted(rest.items())), []).append(record)
    result = []
    for group in groups.values():
        settings = {key: value for key, value in group[0].settings.items() if key != "seed"}
        whole = [record for record in group if not record.diverged]
        accuracies, losses = zip(*((r.accuracy, r.epochs[-1].loss) for r in whole), strict=True) if whole else ((), ())
        result.append(Row(settings, accuracies, losses, len(group) - len(whole)))
    order = list(METHODS)

    def place(row: Row) -> tuple[Any, ...]:
        s = row.settings
        network = s["dataset"], s["depth"], s["epochs"]
        return *network, order.index(s["method"]), s["orthogonality"], s["weight_decay"], s["lr"]

    return sorted(result, key=place)
