"""What the commands share: where to run, how to stop, tables on the screen and in Markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ...manifolds.errors import RetractError

__all__ = ["Device", "check_files", "chosen", "progress", "readable", "show", "write_json"]


class Device(str, Enum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def chosen(choice: Device) -> torch.device:
    """The device of `choice`. Raises `RetractError` for a GPU that torch does not see."""
    available = torch.cuda.is_available()
    if choice is Device.cuda and not available:
        raise RetractError("--device cuda: torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if choice is not Device.cpu and available else "cpu")


def check_files(*paths: Path | None) -> None:
    """Raises `RetractError` for a file to write that is a folder, before anything is computed."""
    for path in paths:
        if path is not None and path.is_dir():
            raise RetractError(f"{path} is a folder; name the file to write")


@contextmanager
def readable(on_interrupt: str = "Interrupted.") -> Iterator[None]:
    """Turns our errors into a message and exit code 2, and Ctrl-C into `on_interrupt` and exit code 130."""
    try:
        yield
    except RetractError as error:
        raise typer.BadParameter(str(error)) from None
    except KeyboardInterrupt:
        typer.echo(f"\n{on_interrupt}", err=True)
        raise typer.Exit(130) from None


def progress(console: Console, disable: bool = False) -> Progress:
    """A bar with the time that is left, unless `disable`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=disable)


def show(tables: Sequence[Table], console: Console, markdown: Path | None) -> None:
    """Print `tables`, and write them to `markdown` if that is given."""
    for table in tables:
        console.print(table)
    if markdown is not None:
        text = io.StringIO()
        plain = Console(file=text, width=10_000)
        for table in tables:
            table.box = box.MARKDOWN
            title, caption, table.title, table.caption = table.title, table.caption, None, None
            plain.print(f"{title}\n", table, f"{caption or ''}\n", sep="\n")
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip() + "\n")
        console.print(f"Markdown: {markdown}", soft_wrap=True)


def write_json(content: Any, path: Path | None, console: Console) -> None:
    """All numbers, if `path` is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        console.print(f"Numbers: {path}", soft_wrap=True)
