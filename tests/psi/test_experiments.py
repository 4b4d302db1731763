"""``python docs/experiments``, the experiments of a checkout, as a command."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "experiments"


def test_it_runs_from_any_folder(tmp_path):
    arguments = ["toy", "--steps", "0", "--plot", "x.png"]
    command = [sys.executable, FOLDER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Usage: python docs/experiments toy" in done.stderr
    assert "--steps" in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_without_the_extra_one_line_names_it(missing):
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_path({str(FOLDER)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f"python docs/experiments needs {missing}, which is not installed: add the extra with pip install '.[experiments]' in a checkout of retract"
    )
