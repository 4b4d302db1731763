"""``toy`` and ``rates``: options, progress and tables of the experiments that take minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import rates as theorems
from . import toy as figure4
from .cli_shared import check_files, new_table, progress, readable, show, write_json
from .plots import toy_curves

__all__ = ["rates", "toy"]


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
        show([toy_table(criterion, runs) for criterion, runs in best.items()], console, markdown)
        console.print(
            f"PSI's curves from the three starts differ by at most {figure4.spread(best['‖∇_V‖']):.1g}, relatively."
        )
        toy_curves(best["‖∇_V‖"], plot)
        console.print(f"Gradients, at the rates chosen by ‖∇_V‖: {plot}", soft_wrap=True)
        write_json({criterion: [vars(run) for run in runs] for criterion, runs in best.items()}, json_file, console)


def toy_table(criterion: str, runs: list[figure4.Run]) -> Table:
    """What is left of gradients and loss, a row for each start and method."""
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
