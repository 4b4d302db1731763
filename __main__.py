"""``python -m retract``: Figure 1 of Yi, Accelerating Training of Batch Normalization: A Manifold Perspective (UAI 2022)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch

from .errors import RetractError, install
from .psi import data, figure1


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from a balanced start and from a rescaled copy of it, print the table and draw the figure.

    Args:
        arguments: those of the command line if None.

    Exits with 1 without the packages of the extra ``figures``, with 2 for arguments that are refused, with 130 after Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    for package in ("matplotlib", "sklearn"):  # before anything is trained
        if find_spec(package) is None:
            told = f"python -m retract needs {package}, which is not installed"
            sys.exit(f"{told}: add the extra with {install('figures')}")
    try:
        _run(options)
    except RetractError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retract",
        description="Figure 1 of Yi (UAI 2022): a balanced start against a rescaled one. Both are the same function; only its "
        "rows are rescaled. The paper's other experiments are scripts of a checkout, in docs/experiments.",
    )
    usual = figure1.Config()
    add = parser.add_argument
    add(
        "--data",
        choices=("digits", "mnist"),
        default="digits",
        help="scikit-learn's digits, or MNIST from --data-dir (%(default)s)",
    )
    add("--data-dir", type=Path, metavar="DIR", help="folder with MNIST's four idx .gz files")
    add(
        "--epochs",
        type=int,
        default=usual.epochs,
        metavar="N",
        help="the rate drops tenfold after 40 %% of them (%(default)s)",
    )
    add(
        "--scale",
        type=float,
        default=usual.scale,
        metavar="A",
        help="rows start at A and 1/A times unit norm; the paper draws 1e4 (%(default)s)",
    )
    add(
        "--eps",
        type=float,
        default=usual.eps,
        metavar="EPS",
        help="of the BatchNorm layers; 1e-5 shows the trap (%(default)s)",
    )
    add("--seed", type=int, default=usual.seed, metavar="N", help="of initialization and batches (%(default)s)")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes a GPU if there is one (%(default)s)",
    )
    add(
        "--plot", type=Path, default=Path("unbalanced.png"), metavar="FILE", help="PNG of the loss curves (%(default)s)"
    )
    add("--markdown", type=Path, metavar="FILE", help="the table, as Markdown")
    add("--json", type=Path, metavar="FILE", help="all numbers, as JSON")
    return parser


def _run(options: argparse.Namespace) -> None:
    config = figure1.Config(epochs=options.epochs, scale=options.scale, eps=options.eps, seed=options.seed)
    _check(options)
    split = _load(options)
    print(
        f"{split.train_x.shape[1]}-{config.hidden}-{int(split.train_y.max()) + 1} network with BatchNorm after both layers, "
        f"rows of norm 1 against rows of norm {config.scale:g} and {1 / config.scale:g} in turn, on {split.train_x.device}."
    )
    print(
        f"BatchNorm's eps = {config.eps:g} changes the output at the rescaled start by {figure1.eps_leak(split, config):.2g} "
        "(relative, float64); without eps it would be rounding."
    )
    print(figure1.invariance(split, config))
    outcomes = _outcomes(split, config)
    table = table_of(outcomes)
    title = "Training loss and test accuracy after the last epoch, from both starts"
    note = (
        "difference: the largest between the two starts' epoch means of the loss; bitwise: no step differs in any bit"
    )
    print("", title, "", *("  ".join(row) for row in table), "", note, sep="\n")
    print(
        "SGDG normalises its rows before the first step, so its two starts are one point, up to rounding, and its two runs one run."
    )
    for path in (options.plot, options.markdown, options.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    figure1.draw(outcomes, config).savefig(options.plot, dpi=150)
    print(f"Loss curves: {options.plot}")
    if options.markdown is not None:
        options.markdown.write_text("\n".join([title, "", *(f"| {' | '.join(row)} |" for row in table), "", note, ""]))
        print(f"Markdown: {options.markdown}")
    if options.json is not None:
        found = {"config": vars(config), "data": options.data, "outcomes": [outcome.to_dict() for outcome in outcomes]}
        options.json.write_text(json.dumps(found))
        print(f"Numbers: {options.json}")


def _check(options: argparse.Namespace) -> None:
    """Raises `RetractError` for what would fail later on, or in other words."""
    if options.epochs < 1:
        raise RetractError(f"--epochs {options.epochs}: at least one is trained")
    if not 0 <= options.seed < 2**63:
        raise RetractError(f"--seed {options.seed}: seeds lie in [0, 2^63)")
    if not 1e-15 <= options.scale <= 1e15:
        raise RetractError(
            f"--scale {options.scale:g}: rows are multiplied by it and by its inverse, and float32 holds their squares for "
            "factors in [1e-15, 1e15]"
        )
    if not 0 < options.eps < float("inf"):
        raise RetractError(f"--eps {options.eps:g}: torch needs a positive eps to train")
    if options.data == "mnist" and options.data_dir is None:
        raise RetractError("--data mnist needs --data-dir, the folder with the four idx .gz files")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RetractError("--device cuda: torch sees no GPU here; use auto or cpu")
    for path in (options.plot, options.markdown, options.json):
        if path is not None and path.is_dir():
            raise RetractError(f"{path} is a folder; name the file to write")


def _load(options: argparse.Namespace) -> data.Split:
    split = data.digits() if options.data == "digits" else data.mnist(options.data_dir)
    return split.to(torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"))


def _outcomes(split: data.Split, config: figure1.Config) -> list[figure1.Outcome]:
    """Of all methods; on a terminal, with a line that says how far the training is."""
    done, total, began = 0, 2 * config.epochs * len(figure1.METHODS), time.perf_counter()
    outcomes = []
    for method in figure1.METHODS:

        def report(start: str, epoch: int, loss: float, method: str = method) -> None:
            nonlocal done
            done += 1
            left = timedelta(seconds=round((time.perf_counter() - began) / done * (total - done)))
            told = f"{done} of {total}, {left} left: {method:8} {start:8} epoch {epoch + 1:3}  loss {loss:.4f}"
            if sys.stderr.isatty():
                print(f"\r{told:<78}", end="\n" * (done == total), file=sys.stderr, flush=True)

        outcomes.append(figure1.compare(method, split, config, report))
    return outcomes


def table_of(outcomes: Sequence[figure1.Outcome]) -> list[list[str]]:
    """The cells of the table, row by row, padded to the widths of their columns; the second row is a rule."""
    rows = [["method", "loss", "loss, rescaled", "accuracy", "accuracy, rescaled", "difference"]]
    for o in outcomes:
        losses = [f"{o.epoch_means[start][-1]:.5f}" for start in figure1.STARTS]
        accuracies = [f"{o.accuracy[start]:.2f} %" for start in figure1.STARTS]
        difference = "0, bitwise" if o.bitwise_equal else f"{o.largest_difference:.2g}"
        rows.append([o.method, *losses, *accuracies, difference])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]


if __name__ == "__main__":
    main()
