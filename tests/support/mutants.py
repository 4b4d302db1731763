"""Faults that the library once had, or could have, each in a line of its source, with the quick test that must notice it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import retract

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """What is wrong, the file relative to the root, a text that occurs in it once, what takes its place, and the id of the test."""

    kind: str
    file: str
    old: str
    new: str
    node: str


MUTANTS = [
    Mutant(
        "a pickle uses as a key what takes 2^n steps to hash",
        "psi/experiments/pickles.py",
        "    _check_keys(values[::2])\n",
        "",
        "tests/network/test_damaged_files.py::test_pickles_made_to_do_harm[a key nested twice over]",
    ),
    Mutant(
        "a value that contains itself is handed on",
        "psi/experiments/pickles.py",
        "    _check_size(result, most)\n",
        "",
        "tests/network/test_damaged_files.py::test_pickles_made_to_do_harm[a list that contains itself]",
    ),
    Mutant(
        "a packed file is unpacked whatever it holds",
        "psi/experiments/data.py",
        "content = stream.decompress(packed, _MOST + 1)",
        "content = stream.decompress(packed)",
        "tests/network/test_damaged_files.py::test_damaged_idx_files[zeros without end]",
    ),
    Mutant(
        "a flipped bit in a checkpoint is not noticed",
        "psi/experiments/checkpoint.py",
        "if damaged := archive.testzip():",
        "if damaged := None:",
        "tests/network/test_damaged_files.py::test_checkpoints_made_to_do_harm",
    ),
    Mutant(
        "an optimizer goes on from a state that is not its own",
        "psi/experiments/training.py",
        "        if place is not None:\n",
        "        if False:\n",
        "tests/network/test_damaged_files.py::test_states_of_something_else",
    ),
    Mutant(
        "numbers of a table are cut off on a narrow screen",
        "psi/experiments/cli_shared.py",
        "table if _fits(table, console) else _upright(table)",
        "table",
        "tests/network/test_screens.py::test_no_cell_is_cut_off[toy-60]",
    ),
    Mutant(
        "the time left counts what former processes trained",
        "psi/experiments/cli_shared.py",
        'made = task.completed - task.fields.get("earlier", 0)',
        "made = task.completed",
        "tests/network/test_screens.py::test_the_time_left_of_a_run_that_goes_on",
    ),
]
"""Their tests must pass as the sources are, and fail with any of them."""


def copied(folder: Path, mutant: Mutant | None = None) -> Path:
    """The package as it is installed, in `folder`, with the fault of `mutant`."""
    installed = Path(retract.__file__).parent
    for path in [
        *installed.glob("*.py"),
        *(p for part in ("manifolds", "optim", "psi") for p in (installed / part).rglob("*.py")),
    ]:
        place = folder / "retract" / path.relative_to(installed)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    if mutant is not None:
        place = folder / "retract" / mutant.file
        place.write_text(place.read_text().replace(mutant.old, mutant.new))
    return folder


def outcome(folder: Path, nodes: list[str]) -> subprocess.CompletedProcess[str]:
    """What pytest says of the tests `nodes`, with the package in `folder`. Its exit code is 0 if all pass and 1 if one fails."""
    flags = ["-x", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *flags, *nodes]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
