"""The command line: options, progress, tables, plots. What is computed stands beside it, one file per experiment."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...manifolds.errors import RetractError
from . import data as readers
from . import unbalanced as figure1
from .plots import loss_curves

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Data(str, Enum):
    """Data sets of `unbalanced`."""

    digits = "digits"
    mnist = "mnist"


class Device(str, Enum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.callback()
def experiments() -> None:
    """The experiments of Yi, Accelerating Training of Batch Normalization: A Manifold Perspective (UAI 2022)."""


@app.command()
def unbalanced(
    data: Annotated[Data, typer.Option(help="scikit-learn's digits, or MNIST from --data-dir")] = Data.digits,
    data_dir: Annotated[Path | None, typer.Option(help="folder with MNIST's four idx .gz files")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="the rate drops tenfold after 40 % of them")] = 40,
    scale: Annotated[float, typer.Option(help="a: rows start at a and 1/a times unit norm; the paper draws 1e4")] = 2.0
    ** 13,
    eps: Annotated[float, typer.Option(help="of the BatchNorm layers; 1e-5 shows the trap")] = 1e-30,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of initialization and batches")] = 0,
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one")] = Device.auto,
    plot: Annotated[Path, typer.Option(help="PNG of the loss curves")] = Path("unbalanced.png"),
    json_file: Annotated[Path | None, typer.Option("--json", help="all numbers, as JSON")] = None,
) -> None:
    """Figure 1: training from a balanced start and from T_a of it, the same function with rows rescaled."""
    console = Console()
    config = figure1.Config(epochs=epochs, scale=scale, eps=eps, seed=seed)
    try:
        split = _load(data, data_dir).to(_device(device))
        _check(config)
        for path in (plot, json_file):
            if path is not None and path.is_dir():
                raise RetractError(f"{path} is a folder; name the file to write")
    except RetractError as error:
        raise typer.BadParameter(str(error)) from None
    console.print(
        f"{split.train_x.shape[1]}-{config.hidden}-{int(split.train_y.max()) + 1} network with BatchNorm after both layers, "
        f"rows of norm 1 against rows of norm {scale:g} and {1 / scale:g} in turn, on {split.train_x.device}."
    )
    console.print(
        f"BatchNorm's eps = {eps:g} changes the output at the rescaled start by {figure1.eps_leak(split, config):.2g} "
        "(relative, float64); without eps it would be rounding."
    )
    console.print(str(figure1.invariance(split, config)), highlight=False, soft_wrap=True)
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=2 * epochs * len(figure1.METHODS))
        for method in figure1.METHODS:

            def report(start: str, epoch: int, loss: float, method: str = method) -> None:
                progress.update(
                    task, advance=1, description=f"{method:8} {start:8} epoch {epoch + 1:3}  loss {loss:.4f}"
                )

            outcomes.append(figure1.compare(method, split, config, report))
    console.print(_table(outcomes))
    console.print(
        "SGDG normalises its rows before the first step, so its two starts are one point, up to rounding, and its two runs one run."
    )
    loss_curves(outcomes, config, plot)
    console.print(f"Loss curves: {plot}", soft_wrap=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        content = {"config": vars(config), "data": data.value, "outcomes": [outcome.to_dict() for outcome in outcomes]}
        json_file.write_text(json.dumps(content))
        console.print(f"Numbers: {json_file}", soft_wrap=True)


def _load(data: Data, folder: Path | None) -> readers.Split:
    if data is Data.digits:
        return readers.digits()
    if folder is None:
        raise RetractError("--data mnist needs --data-dir, the folder with the four idx .gz files")
    return readers.mnist(folder)


def _device(choice: Device) -> torch.device:
    available = torch.cuda.is_available()
    if choice is Device.cuda and not available:
        raise RetractError("--device cuda: torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if choice is not Device.cpu and available else "cpu")


def _check(config: figure1.Config) -> None:
    if not 1e-15 <= config.scale <= 1e15:
        raise RetractError(
            f"--scale {config.scale:g}: rows are multiplied by it and by its inverse, and float32 holds their squares for "
            "factors in [1e-15, 1e15]"
        )
    if not 0 < config.eps < float("inf"):
        raise RetractError(f"--eps {config.eps:g}: torch needs a positive eps to train")


def _table(outcomes: list[figure1.Outcome]) -> Table:
    table = Table(
        title="Training loss and test accuracy after the last epoch, from both starts",
        caption="difference: the largest between the two starts' epoch means of the loss; bitwise: no step differs in any bit",
    )
    table.add_column("method")
    for name in ("loss", "loss from T_a", "accuracy", "accuracy from T_a", "difference"):
        table.add_column(name, justify="right")
    for o in outcomes:
        losses = [f"{o.epoch_means[start][-1]:.5f}" for start in figure1.STARTS]
        accuracies = [f"{o.accuracy[start]:.2f} %" for start in figure1.STARTS]
        table.add_row(
            o.method, *losses, *accuracies, "0, bitwise" if o.bitwise_equal else f"{o.largest_difference:.2g}"
        )
    return table
