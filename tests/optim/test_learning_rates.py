"""Adam's learning rate: an angle on points of many coordinates, torch's rate in flat space."""

import inspect
import json
import math
from pathlib import Path

import geoopt
import pytest
import torch
from retract import declare, param_groups
from retract.errors import OptionError
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.optim import AdamG, RiemannianAdam
from torch import nn

DOCS = Path(__file__).parents[2] / "docs"
ANGLE = 0.1


def on(manifold, **options):
    return {"params": [nn.Parameter(manifold.random_point(4, 2))], "manifold": manifold, **options}


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1), Grassmann(2), Stiefel()], ids=repr)
def test_defaults_are_numbers_per_group(manifold):
    its = [on(manifold), on(Euclidean(0)), on(Euclidean(1)), {"params": [nn.Parameter(torch.ones(2))]}]
    optimizer = RiemannianAdam([*its, on(manifold, lr=0.3)])
    assert [group["lr"] for group in optimizer.param_groups] == [ANGLE, 1e-3, 1e-3, 1e-3, 0.3]
    optimizer.add_param_group(on(manifold))
    assert optimizer.param_groups[-1]["lr"] == ANGLE
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups[:2]] == [ANGLE / 2, 5e-4]
    assert [group["lr"] for group in RiemannianAdam([*map(on, [manifold, Euclidean(0)])], lr=0.2).param_groups] == [
        0.2
    ] * 2
    assert RiemannianAdam([on(manifold)], lr=None).param_groups[0]["lr"] == ANGLE
    assert AdamG([on(Grassmann(1))]).param_groups[0]["lr"] == inspect.signature(AdamG).parameters["lr"].default


def test_a_group_of_both_kinds_has_to_say_its_rate():
    w = geoopt.ManifoldParameter(nn.functional.normalize(torch.randn(2, 3), dim=1), manifold=geoopt.Sphere())
    flat = nn.Parameter(torch.ones(2))
    assert RiemannianAdam([w]).param_groups[0]["lr"] == ANGLE
    with pytest.raises(
        OptionError, match=r"lr=None in a group with parameter 1 of its group in flat space and parameter 0"
    ):
        RiemannianAdam([w, flat])
    assert RiemannianAdam([w, flat], lr=0.01).param_groups[0]["lr"] == 0.01


def test_in_flat_space_the_default_is_torchs(device):
    ends = []
    for make in (torch.optim.Adam, RiemannianAdam):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
        optimizer = make(net.parameters(), foreach=False)
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.randn(16, 4, device=device)).square().mean().backward()
            optimizer.step()
        ends.append([p.detach() for p in net.parameters()])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("rows", [Rows(), Rows(blocks=2), Rows.whole()], ids=["rows", "blocks", "whole"])
@pytest.mark.parametrize("size", [1e-3, 1e3])
@pytest.mark.parametrize("n", [3, 300])
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_the_first_step_turns_every_point_by_the_rate(manifold, n, size, rows, device):
    """Whatever the number of coordinates, the size of the gradient and the granularity: by arctan(lr), as a retraction goes."""
    net = nn.Linear(n, 8, bias=False, dtype=torch.float64, device=device)
    declare(net, "weight", manifold, rows)
    before = net.weight.detach().clone()
    optimizer = RiemannianAdam(param_groups(net))
    layout = rows.layout(before, 1)
    net.weight.grad = size * torch.randn_like(net.weight)
    split = layout.split(net.weight.grad)
    split.copy_(manifold.project(layout.split(before), split))  # as the gradient of an invariant loss is
    optimizer.step()
    turned = manifold.dist(layout.split(before), layout.split(net.weight.detach()))
    assert (turned - math.atan(ANGLE)).abs().max() < 1e-4  # eps = 1e-8 next to gradients of 1e-3


@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(4)], ids=repr)
def test_a_frame_moves_by_the_rate_as_a_whole(manifold, device):
    w = nn.Parameter(manifold.random_point(64, 4, dtype=torch.float64, device=device))
    before = w.detach().clone()
    w.grad = torch.randn_like(w)
    RiemannianAdam([{"params": [w], "manifold": manifold}], lr=1e-4).step()
    assert float((w.detach() - before).norm()) == pytest.approx(1e-4, rel=1e-3)


def test_the_page_has_the_numbers_that_were_measured():
    page = (DOCS / "training.md").read_text()
    results = json.loads((DOCS / "benchmarks" / "rates_per_granularity.json").read_text())
    assert len(results) > 15
    for its in results:
        accuracy = its["accuracy"]
        best = max(accuracy, key=accuracy.get)
        good = [lr for lr, right in accuracy.items() if right >= accuracy[best] - 0.5]
        line = (
            f"| `{its['optimizer']}` | `{its['manifold']}`, {its['points']} | {best} | {accuracy[best]:.1f} | "
            f"{good[0]} – {good[-1]} | {its['moved'][best]:.2g} | {accuracy['0.001']:.1f} |"
        )
        assert line in page, line
    adam = [
        its["accuracy"]
        for its in results
        if its["optimizer"] == "RiemannianAdam" and its["schedule"] == "cosine" and "frame" not in its["points"]
    ]
    assert len(adam) == 5
    assert all(accuracy[str(ANGLE)] >= max(accuracy.values()) - 0.5 for accuracy in adam), "the default is a good rate"
