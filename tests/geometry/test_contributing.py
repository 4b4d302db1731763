"""The example manifold of docs/extend.md: every law holds for it, and every optimizer takes it up."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from geometries import Case
from laws import LAWS, Setting
from retract import declare, param_groups
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def contributed():
    """The class in the page's first code block, in a module of its own so that it can be pickled."""
    module = sys.modules.setdefault("contributed", types.ModuleType("contributed"))
    block, *_ = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    if not hasattr(module, "PositiveOrthant"):
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    return module.PositiveOrthant


CASE = Case(
    "orthant", contributed()(), (3, 4), [-1.0, 1.0, 1.0, 1.0], known=(("dist", ([1.0], [2.0]), [0.6931471805599453]),)
)


@pytest.mark.parametrize(
    "law", [law for cls, law in LAWS if isinstance(CASE.manifold, cls)], ids=lambda law: law.__name__
)
def test_law(law, generator, device):
    law(Setting(CASE, generator, device))


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
    declare(layer, "weight", CASE.manifold)
    optimizer = make(param_groups(layer))
    target = torch.rand(3, 4, device=device) + 0.5
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer.weight / target).log().square().mean()
        loss.backward()
        optimizer.step()
        CASE.manifold.check_point(layer.weight.detach())
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
