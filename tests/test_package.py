"""The house: what is packed, what imports what, how long files are, and that docstrings run."""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import retract

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("manifolds", "optim", "psi", "testing") for p in sorted((ROOT / folder).rglob("*.py"))]

RESULTS = {
    retract.manifolds.Declaration,
    retract.psi.Finding,
    retract.psi.Report,
    retract.psi.Observation,
    retract.psi.ProbeError,
    retract.testing.Law,
    retract.testing.LawError,
}


def test_imports_point_one_way():
    """errors ← manifolds ← optim ← psi and optim ← testing: no file imports what lies above it, and none the root."""
    below = {
        "manifolds": {"errors", "manifolds"},
        "optim": {"errors", "manifolds", "optim"},
        "psi": {"errors", "manifolds", "optim", "psi"},
        "testing": {"errors", "manifolds", "optim", "testing"},
    }
    for path in SOURCES:
        parts = path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "retract" for alias in node.names), path
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            assert (node.module or "").split(".")[0] != "retract", path
            package = list(parts[:-1])
            base = package[: len(package) - node.level + 1]
            targets = (
                [[*base, *(node.module or "").split(".")]] if node.module else [[*base, a.name] for a in node.names]
            )
            for target in targets:
                assert target[0] in {"errors", *below}, f"{path} imports the root"
                assert target[0] in below[parts[0]], f"{path} imports {'.'.join(target)}"


def test_files_are_rooms():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 400, path
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run([*command, "--disable-pip-version-check"], check=True, capture_output=True)
    (packed,) = folder.glob("*.whl")
    zipfile.ZipFile(packed).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_every_package(wheel):
    names = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    expected = {f"retract/{name}" for name in ("__init__.py", "__main__.py", "errors.py", "py.typed")}
    expected |= {f"retract/{path.relative_to(ROOT)}" for path in SOURCES}
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_of_the_experiments_the_wheel_holds_figure_1(wheel, tmp_path):
    """``python -m retract`` runs without typer, rich, or any file of docs/experiments and docs/studies, by name or by import."""
    files = (path for part in ("experiments", "studies") for path in (ROOT / "docs" / part).rglob("*.py"))
    experiments = {path.name for path in files} - {"__init__.py", "__main__.py"}
    assert experiments
    assert not experiments & {path.name for path in (wheel / "retract").rglob("*.py")}
    code = (
        "import runpy, sys, retract\n"
        f"assert retract.__file__.startswith({str(wheel)!r}), retract.__file__\n"
        "sys.modules.update(typer=None, rich=None, experiments=None, studies=None)\n"
        "sys.argv = ['retract', '--epochs', '1', '--device', 'cpu', '--plot', 'figure.png']\n"
        "runpy.run_module('retract', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PSI-SGDM" in done.stdout
    assert (tmp_path / "figure.png").read_bytes()[1:4] == b"PNG"


def test_tests_run_against_the_installed_package():
    assert Path(retract.__file__).parent != ROOT


def test_the_quick_tier_names_folders():
    """Not files, so that it has the tests of new ones."""
    recipe = re.search(r"^test-quick:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.M)[1]
    folders = re.findall(r"tests\S*", recipe)
    assert len(folders) == 2
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_import_is_light():
    """On top of torch: under 0.12 s of this process, and geoopt, numba and the experiments' packages stay out. Best of five, without
    collections of torch's objects, which come when they come."""
    code = (
        "import gc, torch, sys, time; gc.disable(); t = time.process_time(); import retract; t = time.process_time() - t\n"
        "assert not {'geoopt', 'numba', 'matplotlib', 'rich', 'typer', 'sklearn', 'retract.testing'} & set(sys.modules)\n"
        "assert retract.testing.check_manifold and 'pytest' not in sys.modules; print(t)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) for _ in range(5)
    ]
    assert min(times) < 0.12, times


def test_docstring_examples_run():
    count = 0
    for info in pkgutil.walk_packages(retract.__path__, "retract."):
        if info.name.endswith("__main__"):
            continue
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
        count += result.attempted
    result = doctest.testmod(retract)
    assert result.failed == 0
    assert count + result.attempted > 0


def test_what_users_call_has_an_example():
    """Functions and classes that are made by their name; a result, an error or an abstract class is no such thing."""
    for module in (retract, retract.manifolds, retract.optim, retract.psi, retract.testing):
        for name in module.__all__:
            thing = getattr(module, name)
            its = inspect.isclass(thing) and not inspect.isabstract(thing) and thing not in RESULTS
            if its or inspect.isfunction(thing):
                assert ">>>" in thing.__doc__, f"{module.__name__}.{name}"


def test_public_objects_have_docstrings():
    for module in (retract.manifolds, retract.optim, retract.psi, retract.testing):
        for name in module.__all__:
            thing = getattr(module, name)
            assert thing.__doc__, name
            for key, member in vars(thing).items() if isinstance(thing, type) else ():
                if callable(member) and not key.startswith("_"):
                    assert member.__doc__, f"{name}.{key}"
