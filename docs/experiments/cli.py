"""``python docs/experiments``: one command per experiment. The computations are in the files beside it."""

from __future__ import annotations

import typer

from .cli_networks import cifar, epoch_time, imagenet, table
from .cli_small import rates, toy

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def experiments() -> None:
    """The experiments of Yi, Accelerating Training of Batch Normalization: A Manifold Perspective (UAI 2022)."""


for command in (toy, rates, cifar, imagenet, epoch_time, table):
    app.command()(command)
