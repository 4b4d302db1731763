"""The example manifold of docs/extend.md: every law holds for it, under any module name, and every optimizer takes it up."""

import re
from pathlib import Path

import pytest
import torch
from retract import declare, param_groups, testing
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def contributed(module):
    """The manifold in the page's first code block, defined in a namespace that says to be `module`, which need not exist."""
    block, *_ = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    namespace = {"__name__": module}
    exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace["PositiveOrthant"]()


MANIFOLD = contributed("contributed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("law", testing.laws(MANIFOLD))
def test_law(law, dtype, seed, device):
    law.check(MANIFOLD, (4,), dtype=dtype, seed=seed, device=device)


@pytest.mark.parametrize("module", ["retract.manifolds.orthant", "retract.manifolds.sphere", "__main__", "json"])
def test_laws_under_any_module_name(module, device):
    """Of a library, of a file of it, of a script, and of a module that has other contents."""
    testing.check_manifold(contributed(module), (4,), dtypes=[torch.float64], device=device)


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
