"""Row kernels of a user's own: one file, ``tests/support/numpy_rows.py``, and one line in the registry."""

import numpy_rows
import pytest
import torch
from optimizers import RULES
from own_rules import RMSprop, optimizer_of
from paths import LAYOUTS, agree, run, sizes
from retract.errors import OptionError
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim import RiemannianSGD
from retract.optim.execution.dispatch import BACKENDS
from torch import nn

DTYPES = (torch.float32, torch.float64)
MOVES = [(motion, t) for motion in ("retract", "exp") for t in ("manifold", "project", "parallel", "none")]


def rmsprop(groups, lr, **options):
    """A rule whose coefficients differ from point to point."""
    paths = {name: options.pop(name) for name in ("foreach", "fused") if name in options}
    return optimizer_of(RMSprop())([group | paths for group in groups], {"lr": lr, **options})


MAKES = RULES | {"own": rmsprop}


@pytest.fixture
def calls(monkeypatch):
    """Registers the backend, and counts its steps."""
    monkeypatch.setitem(BACKENDS, "cpu", ("numpy", "numpy_rows", DTYPES))
    counted, step = [], numpy_rows.step
    monkeypatch.setattr(numpy_rows, "step", lambda *arguments: counted.append(step(*arguments)))
    return counted


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_it_agrees_with_the_reference(manifold, make, calls):
    """Every motion and transport, in every layout that is not cut into copies otherwise; both radii, clipped and not."""
    for i, (motion, transport) in enumerate(MOVES):
        layout = list(LAYOUTS)[i]
        options = {"motion": motion, "transport": transport, "maximize": i % 3 == 0}
        options |= {"max_point_norm": 0.3 if i % 2 else None, "radius": "free" if i % 4 < 2 else "hold"}
        exact = run(MAKES[make], manifold, layout, torch.float64, "cpu", {"foreach": False}, **options)
        assert not calls
        for dtype in DTYPES:
            ours = run(MAKES[make], manifold, layout, dtype, "cpu", {"fused": True}, **options)
            assert len(calls) == 3
            calls.clear()
            agree(ours, exact, sizes(manifold, layout), dtype)


def test_what_an_optimizer_says_of_it(calls):
    w = nn.Parameter(torch.ones(2, 3))
    optimizer = RiemannianSGD([{"params": [w], "names": ["w"], "manifold": PSI()}], lr=0.1)
    assert [*optimizer.paths()] == [("w", "PSI()", "fused", "numpy_rows")]
    with pytest.raises(OptionError, match=r"row kernels for PSI\(\) on cpu support float32, float64, not bfloat16"):
        RiemannianSGD([{"params": [nn.Parameter(w.detach().bfloat16())], "manifold": PSI(), "fused": True}], lr=0.1)


def test_nothing_moves_without_gradient_and_lr(calls):
    """By a bit."""
    for manifold in (PSI(), Sphere(), Grassmann(1)):
        for motion, transport in MOVES:
            w = nn.Parameter(manifold.random_point(5, 7))
            before = w.detach().clone()
            options = {"momentum": 0.9, "motion": motion, "transport": transport}
            optimizer = RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.0, **options)
            w.grad = torch.zeros_like(w)
            optimizer.step()
            assert calls
            assert torch.equal(w, before)
