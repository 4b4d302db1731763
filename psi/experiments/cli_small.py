"""``unbalanced``, ``toy`` and ``rates``: options, progress and tables of the experiments that take minutes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...manifolds.errors import RetractError
from . import data as readers
from . import rates as theorems
from . import toy as figure4
from . import unbalanced as figure1
from .cli_shared import Device, check_files, chosen, new_table, progress, readable, show, write_json
from .plots import loss_curves, toy_curves

__all__ = ["rates", "toy", "unbalanced"]


class Data(str, Enum):
    """Data sets of `unbalanced`."""

    digits = "digits"
    mnist = "mnist"


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
    markdown: Annotated[Path | None, typer.Option(help="the table, as Markdown")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="all numbers, as JSON")] = None,
) -> None:
    """Figure 1: a balanced start against a rescaled one. Both are the same function; only its rows are rescaled."""
    console = Console()
    config = figure1.Config(epochs=epochs, scale=scale, eps=eps, seed=seed)
    with readable():
        split = _load(data, data_dir).to(chosen(device))
        _check(config)
        check_files(plot, markdown, json_file)
        _unbalanced(split, config, data, plot, markdown, json_file, console)


def _unbalanced(
    split: readers.Split,
    config: figure1.Config,
    data: Data,
    plot: Path,
    markdown: Path | None,
    json_file: Path | None,
    console: Console,
) -> None:
    console.print(
        f"{split.train_x.shape[1]}-{config.hidden}-{int(split.train_y.max()) + 1} network with BatchNorm after both layers, "
        f"rows of norm 1 against rows of norm {config.scale:g} and {1 / config.scale:g} in turn, on {split.train_x.device}."
    )
    console.print(
        f"BatchNorm's eps = {config.eps:g} changes the output at the rescaled start by {figure1.eps_leak(split, config):.2g} "
        "(relative, float64); without eps it would be rounding."
    )
    console.print(str(figure1.invariance(split, config)), highlight=False, soft_wrap=True)
    outcomes = []
    with progress(console) as bar:
        task = bar.add_task("", total=2 * config.epochs * len(figure1.METHODS))
        for method in figure1.METHODS:

            def report(start: str, epoch: int, loss: float, method: str = method) -> None:
                bar.update(task, advance=1, description=f"{method:8} {start:8} epoch {epoch + 1:3}  loss {loss:.4f}")

            outcomes.append(figure1.compare(method, split, config, report))
    show([_table(outcomes)], console, markdown)
    console.print(
        "SGDG normalises its rows before the first step, so its two starts are one point, up to rounding, and its two runs one run."
    )
    loss_curves(outcomes, config, plot)
    console.print(f"Loss curves: {plot}", soft_wrap=True)
    content = {"config": vars(config), "data": data.value, "outcomes": [outcome.to_dict() for outcome in outcomes]}
    write_json(content, json_file, console)


def _load(data: Data, folder: Path | None) -> readers.Split:
    if data is Data.digits:
        return readers.digits()
    if folder is None:
        raise RetractError("--data mnist needs --data-dir, the folder with the four idx .gz files")
    return readers.mnist(folder)


def _check(config: figure1.Config) -> None:
    if not 1e-15 <= config.scale <= 1e15:
        raise RetractError(
            f"--scale {config.scale:g}: rows are multiplied by it and by its inverse, and float32 holds their squares for "
            "factors in [1e-15, 1e15]"
        )
    if not 0 < config.eps < float("inf"):
        raise RetractError(f"--eps {config.eps:g}: torch needs a positive eps to train")


def _table(outcomes: list[figure1.Outcome]) -> Table:
    table = new_table(
        "Training loss and test accuracy after the last epoch, from both starts",
        "difference: the largest between the two starts' epoch means of the loss; bitwise: no step differs in any bit",
        ["method"],
        ["loss", "loss, rescaled", "accuracy", "accuracy, rescaled", "difference"],
    )
    for o in outcomes:
        losses = [f"{o.epoch_means[start][-1]:.5f}" for start in figure1.STARTS]
        accuracies = [f"{o.accuracy[start]:.2f} %" for start in figure1.STARTS]
        table.add_row(
            o.method, *losses, *accuracies, "0, bitwise" if o.bitwise_equal else f"{o.largest_difference:.2g}"
        )
    return table


def toy(
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of data and initialization")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="of the whole batch")] = 200,
    plot: Annotated[Path, typer.Option(help="PNG of the gradients")] = Path("toy.png"),
    markdown: Annotated[Path | None, typer.Option(help="the tables, as Markdown")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="the runs of the tables, as JSON")] = None,
) -> None:
    """Figure 4: how small gradients become. In full-batch regression, with rates swept for every method and start."""
    console, config = Console(), figure4.Config(steps=steps, seed=seed)
    pairs = [(method, scale) for scale in figure4.SCALES for method in figure4.METHODS]
    with readable():
        check_files(plot, markdown, json_file)
        best: dict[str, list[figure4.Run]] = {criterion: [] for criterion in figure4.CRITERIA}
        with progress(console) as bar:
            task = bar.add_task("", total=len(pairs))
            for method, scale in pairs:

                def report(run: figure4.Run) -> None:
                    told = (
                        f"{run.method:13} {run.scale:7} lr {run.lr:7.3g} lr_g {run.lr_g:7.3g}  loss {run.loss[-1]:.4f}"
                    )
                    bar.update(task, description=told)

                runs = figure4.sweep(method, scale, config, report)
                for criterion, key in figure4.CRITERIA.items():
                    best[criterion].append(min(runs, key=key))
                bar.advance(task)
        show([_toy_table(criterion, runs) for criterion, runs in best.items()], console, markdown)
        console.print(
            f"PSI's curves from the three starts differ by at most {figure4.spread(best['‖∇_V‖']):.1g}, relatively."
        )
        toy_curves(best["‖∇_V‖"], plot)
        console.print(f"Gradients, at the rates chosen by ‖∇_V‖: {plot}", soft_wrap=True)
        write_json({criterion: [vars(run) for run in runs] for criterion, runs in best.items()}, json_file, console)


def _toy_table(criterion: str, runs: list[figure4.Run]) -> Table:
    title, caption = f"After the last step, at the rates chosen by {criterion}", "W₂: how its rows start"
    right = ["lr", "lr_g", "‖∇_V‖", "‖∇_W‖", "‖∇_g‖", "loss"]
    table = new_table(title, caption, ["W₂", "method"], right)
    for run in runs:
        ends = (run.grad_v[-1], run.grad_w[-1], run.grad_g[-1])
        numbers = [f"{run.lr:.3g}", f"{run.lr_g:.3g}", *(f"{end:.2e}" for end in ends), f"{run.loss[-1]:.5f}"]
        table.add_row(run.scale, run.method, *numbers)
    return table


def rates(
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="of data, initialization and batches")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="the tables, as Markdown")] = None,
) -> None:
    """Theorems 2 and 3: constants and bounds. Computed along the path, and checked; exit code 1 if a bound fails."""
    console, config = Console(), theorems.Config(seed=seed)
    with readable(), progress(console) as bar:
        check_files(markdown)
        task = bar.add_task("Theorem 2", total=1 + len(config.horizons))
        descent = theorems.theorem_2(config)
        expected = []
        for steps in config.horizons:
            bar.update(task, advance=1, description=f"Theorem 3, T = {steps}")
            expected.append(theorems.theorem_3(config, steps))
        bar.advance(task)
    second = new_table(
        "Theorem 2: PSI-GD with η_i = 1 / L̃_i",
        f"descent over ½ Σ η_i ‖∇_i‖² in the first {config.ratios} steps: {float(descent.ratios.min()):.3f} … "
        f"{float(descent.ratios.max()):.3f}, between 1 and 3 by theory; constants cover the path after {descent.rounds} rounds",
        [],
        ["T", "min ‖∇‖²", "bound (15)"],
    )
    third = new_table(
        "Theorem 3: PSI-SGD with η_i = 1 / (L̃_i √T)",
        f"over {config.seeds} seeds, constants from the paths of {config.covered} of them; deviation of the exact "
        "expected descent from Σ η_i ‖∇_i‖², in units of what the constants allow: at most 1 by theory",
        [],
        ["T", "min E‖∇‖²", "bound (16)", "deviation", "rounds"],
    )
    for power in range(config.steps.bit_length()):
        second.add_row(f"{2**power}", *(f"{side:.4g}" for side in descent.bound(2**power)))
    for e in expected:
        third.add_row(f"{e.steps}", f"{e.left:.4g}", f"{e.right:.4g}", f"{e.deviation:.3f}", f"{e.rounds}")
    show([second, third], console, markdown)
    broken = [*descent.broken(), *(line for e in expected for line in e.broken())]
    for line in broken:
        console.print(f"does not hold: {line}", style="red")
    if broken:
        raise typer.Exit(1)
