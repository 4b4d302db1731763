"""Triton's row kernels of hyperbolic rows against the reference; run by test_rows_triton.py, with the interpreter or on a GPU."""

import hyperbolic_rows
import numpy as np
import pytest
from hyperbolic_rows import CHOICES, RULES
from retract.optim.kernels import triton_hyperbolic


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Rows of several blocks are short enough for the interpreter."""
    monkeypatch.setattr(triton_hyperbolic, "BLOCK", 64)
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_every_choice(choice, device):
    turn = CHOICES.index(choice)
    hyperbolic_rows.check(triton_hyperbolic, choice, list(RULES)[turn % len(RULES)], device, turn)


@pytest.mark.long
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_every_choice_with_every_rule(choice, name, device):
    for turn in range(6):
        hyperbolic_rows.check(triton_hyperbolic, choice, name, device, turn)


@pytest.mark.parametrize("check", ["check_still", "check_rows_apart", "check_boundary", "check_middle"])
def test_edges(check, device):
    getattr(hyperbolic_rows, check)(triton_hyperbolic, device)
