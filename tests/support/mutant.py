"""`Mutant`: a fault in a line of the sources with the quick test that must notice it, and how to try it on a copy."""

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


def copied(folder: Path, mutant: Mutant | None = None) -> Path:
    """The package as it is installed, in `folder`, with the experiments and studies of the checkout, and with the fault of `mutant`."""
    installed = Path(retract.__file__).parent
    for path in [
        *installed.glob("*.py"),
        *(p for part in ("manifolds", "optim", "psi", "testing") for p in (installed / part).rglob("*.py")),
    ]:
        place = folder / "retract" / path.relative_to(installed)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for part in ("experiments", "studies"):
        place = folder / "retract/docs" / part
        shutil.copytree(ROOT / "docs" / part, place, ignore=shutil.ignore_patterns("__pycache__", "results"))
    if mutant is not None:
        place = folder / "retract" / mutant.file
        place.write_text(place.read_text().replace(mutant.old, mutant.new))
    return folder


def outcome(folder: Path, nodes: list[str]) -> subprocess.CompletedProcess[str]:
    """What pytest says of the tests `nodes`, with the package and the experiments in `folder`. Its exit code is 0 if all pass and 1 if one fails."""
    flags = ["-x", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    flags += ["-o", f"pythonpath=tests/support {folder}/retract/docs"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *flags, *nodes]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
