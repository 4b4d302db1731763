"""The files that one step of one parameter crosses are those that docs/design.md lists, and it calls as many functions."""

import re
import sys
from pathlib import Path

import pytest
import retract
import torch
from retract.manifolds import PSI, Stiefel
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD
from torch import nn

PACKAGE = Path(retract.__file__).parent
ROOMS = tuple(str(PACKAGE / room) for room in ("errors.py", "manifolds", "optim", "psi"))
PAGE = Path(__file__).parents[2] / "docs/design.md"
STEPS = {
    "`RiemannianAdam` on `PSI()`, reference": lambda g: RiemannianAdam([{**g, "manifold": PSI(), "foreach": False}]),
    "`RiemannianSGD` with momentum on `Stiefel()`, reference": lambda g: RiemannianSGD(
        [{**g, "manifold": Stiefel()}], momentum=0.9
    ),
    "`PSISGD` with momentum, fused": lambda g: PSISGD([{**g, "manifold": PSI(), "fused": True}], momentum=0.9),
}


def crossed(make):
    """Of the third step of one parameter: the files of the package, as they are entered, and the calls of named functions."""
    w = nn.Parameter(torch.eye(4))
    optimizer = make({"params": [w]})
    files, calls = [], []

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOMS):
            files.append(Path(code.co_filename).relative_to(PACKAGE).as_posix())
            calls.extend([code.co_name] * (not code.co_name.startswith("<")))  # some Pythons inline comprehensions

    for step in range(3):
        w.grad = torch.ones_like(w)
        before = sys.getprofile()
        sys.setprofile(note if step == 2 else before)
        try:
            optimizer.step()
        finally:
            sys.setprofile(before)
    return list(dict.fromkeys(files)), len(calls)


@pytest.mark.parametrize("name", STEPS)
def test_the_page_lists_them(name):
    if "fused" in name:
        pytest.importorskip("numba")
    files, calls = crossed(STEPS[name])
    row = f"| {name} | {len(files)} | {calls} | {', '.join(f'`{file}`' for file in files)} |"
    assert row in PAGE.read_text(), f"docs/design.md has another row than\n{row}"


def test_the_page_lists_no_other():
    rows = re.findall(r"^\| (.*) \| \d+ \| \d+ \| `optim/", PAGE.read_text(), re.M)
    assert rows == [*STEPS]
