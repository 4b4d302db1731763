"""The example manifold of docs/extend.md, one file: every law holds for it, under any module name, and every optimizer takes it up."""

import importlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from retract import declare, param_groups, testing
from retract.manifolds import Sphere
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


BLOCK = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
"""The whole file."""


def contributed(module):
    """The manifold, defined in a namespace that says to be `module`, which need not exist."""
    namespace = {"__name__": module}
    exec(compile(BLOCK, str(PAGE), "exec"), namespace)
    return namespace["PositiveOrthant"]()


MANIFOLD = contributed("contributed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("law", testing.laws(MANIFOLD))
def test_law(law, dtype, seed, device):
    law.check(MANIFOLD, (4,), dtype=dtype, seed=seed, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["retract.manifolds.orthant", "retract.manifolds.sphere", "__main__", "json"])
def test_laws_under_any_module_name(module, device):
    """Of a library, of a file of it, of a script, and of a module that has other contents."""
    testing.check_manifold(contributed(module), (4,), dtypes=[torch.float64], device=device)


def test_one_file_is_all(tmp_path, monkeypatch):
    """Nothing is registered, and nothing else is imported: the file, a declaration, and a network trains on the manifold, goes
    through a checkpoint and is read again by its name."""
    (tmp_path / "orthant.py").write_text(BLOCK)
    monkeypatch.syspath_prepend(tmp_path)
    manifold = importlib.import_module("orthant").PositiveOrthant()
    testing.check_manifold(manifold, (4,))
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1)).double()
    nn.init.uniform_(model[0].weight, 0.5, 1.5)
    declare(model, "0.weight", manifold)
    model = pickle.loads(pickle.dumps(model))
    x = torch.rand(32, 4, dtype=torch.float64)
    y = x.sum(1, keepdim=True).log()
    optimizer, losses = RiemannianAdam(param_groups(model), lr=0.03), []
    for step in range(80):
        if step == 40:
            state, optimizer = optimizer.state_dict(), RiemannianAdam(param_groups(model))
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        manifold.check_point(model[0].weight.detach())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda dtype: str(dtype)[6:])
def test_transports_of_the_longest_steps(dtype, generator):
    """Linear and isometric, to points, for ‖u‖ = 1e4 too, and at coordinates of any size."""
    m = MANIFOLD
    x = m.random_point(30, 4, generator=generator, dtype=dtype) ** 3
    u, v, w = (m.random_tangent(x, generator=generator) for _ in range(3))
    v, w = v / m.norm(x, v), w / m.norm(x, w)
    tol = 100 * torch.finfo(dtype).eps
    for length in (1.0, 100.0, 1e4):
        far = u * (length / m.norm(x, u))
        y, there = m.retract(x, far), m.exp(x, far)
        m.check_point(y)
        m.check_point(there)
        for name, end, carry in (
            ("transport", y, lambda a, far=far: m.transport(x, far, a)),
            ("parallel_transport", there, lambda a, far=far: m.parallel_transport(x, far, a)),
            ("transport_to", there, lambda a, there=there: m.transport_to(x, there, a)),
        ):
            assert (m.inner(end, carry(v), carry(w)) - m.inner(x, v, w)).abs().max() < tol, name
            assert m.norm(end, carry(2 * v + w) - 2 * carry(v) - carry(w)).max() < tol, name


@pytest.mark.parametrize(
    "make",
    [
        lambda p: RiemannianSGD(p, lr=0.05, momentum=0.9),
        lambda p: RiemannianSGD(p, lr=0.05, momentum=0.9, nesterov=True, motion="exp"),
        lambda p: RiemannianAdam(p, lr=0.05),
        lambda p: PSISGD(p, lr=0.05, momentum=0.9),
        lambda p: SGDG(p, lr=0.05, orthogonality=0.0),
        lambda p: AdamG(p, lr=0.05, orthogonality=0.0),
    ],
    ids=["sgd", "nesterov-exp", "adam", "psi-sgd", "sgdg", "adamg"],
)
def test_every_optimizer_takes_it_up(make, device):
    layer = nn.Linear(4, 3, bias=False).to(device)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    declare(layer, "weight", MANIFOLD)
    optimizer = make(param_groups(layer))
    target = torch.rand(3, 4, device=device) + 0.5
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer.weight / target).log().square().mean()
        loss.backward()
        optimizer.step()
        MANIFOLD.check_point(layer.weight.detach())
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


class Directions(Sphere):
    """The unit sphere of a user's own, which says that the row kernels have its formulas."""

    row_kernel = "vectors"


def test_a_spherical_manifold_of_a_users_own_has_every_path(device):
    """No list of types is kept anywhere: each path takes it, and all agree with the maps of the class."""
    testing.check_manifold(Directions(), (4,), dtypes=[torch.float64], device=device)
    start = torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64, device=device), dim=1)
    grads = torch.randn(3, 5, 4, dtype=torch.float64, device=device)
    ends = []
    for name, path in {"reference": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        w = nn.Parameter(start.clone())
        optimizer = RiemannianAdam([{"params": [w], "manifold": Directions(), **path}], lr=0.1)
        assert [its.path for its in optimizer.paths()] == [name]
        for grad in grads:
            w.grad = grad.clone()
            optimizer.step()
        ends.append(w.detach())
    assert all(torch.allclose(ends[0], end, rtol=0, atol=1e-13) for end in ends)
