"""What the commands share: where to run, how to stop, tables on the screen and in Markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import typer
from retract.errors import RetractError
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

__all__ = ["Device", "check_files", "chosen", "new_table", "progress", "readable", "show", "write_json"]


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
    """A bar with the time that is left, unless `disable`. A task's field ``earlier`` counts steps of former processes."""
    # What is done comes last and takes what is left of the line, so that a long description hides nothing else.
    description = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), _TimeLeft(), description)
    return Progress(*columns, console=console, disable=disable, expand=True)


class _TimeLeft(ProgressColumn):
    """The steps left, at the mean time of those made in this process. Unlike rich's column, which forgets after 30 seconds, also
    where a step takes minutes."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))
        self._last: dict[int, tuple[float, float]] = {}
        """For each task the steps that were done when it was last rendered with a new number of them, and the time then."""

    def render(self, task: Task) -> Text:
        """As hours, minutes and seconds; dashes before the first step."""
        made = task.completed - task.fields.get("earlier", 0)
        if task.total is None or task.elapsed is None or made <= 0:
            return Text("-:--:-- left", style="progress.remaining")
        completed, since = self._last.get(task.id, (-1.0, 0.0))
        if completed != task.completed:
            completed, since = self._last[task.id] = task.completed, task.elapsed
        left = (task.total - completed) * since / made - (task.elapsed - since)
        return Text(f"{timedelta(seconds=round(max(0.0, left)))} left", style="progress.remaining")


def new_table(title: str, caption: str | None, left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table, as narrow as can be read, with columns that are justified to the left and, for numbers, to the right."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def show(tables: Sequence[Table], console: Console, markdown: Path | None) -> None:
    """Print `tables`, and write them to `markdown` if that is given."""
    for table in tables:
        console.print(table if fits(table, console) else _upright(table))
    if markdown is not None:
        text = io.StringIO()
        plain = Console(file=text, width=10_000)
        for table in tables:
            table.box = box.MARKDOWN
            table.pad_edge = True
            title, caption, table.title, table.caption = table.title, table.caption, None, None
            plain.print(f"{title}\n", table, f"{caption or ''}\n", sep="\n")
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip() + "\n")
        console.print(f"Markdown: {markdown}", soft_wrap=True)


def fits(table: Table, console: Console) -> bool:
    """Whether rich cuts no cell off, which it marks by an ellipsis."""
    with console.capture() as captured:
        console.print(table)
    texts = [table.title, table.caption, *(cell for column in table.columns for cell in (column.header, *column.cells))]
    return captured.get().count("…") == "".join(map(str, texts)).count("…")


def _upright(table: Table) -> Text:
    """A line for each cell of each row, for a screen that is too narrow for the table."""
    names = [column.header for column in table.columns]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    blocks = ["\n".join(f"{name}: {cell}" for name, cell in zip(names, row, strict=True)) for row in rows]
    return Text("\n\n".join([str(table.title), *blocks, str(table.caption or "")]).rstrip() + "\n")


def write_json(content: Any, path: Path | None, console: Console) -> None:
    """All numbers, if `path` is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        console.print(f"Numbers: {path}", soft_wrap=True)
