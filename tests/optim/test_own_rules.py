"""Rules of a user's own: every path calls them or refuses them, whatever they keep."""

import inspect

import pytest
import torch
from own_rules import RULES, Averaged, RMSprop, Signed, Switched, optimizer_of
from paths import PATHS
from retract.errors import OptionError
from retract.manifolds import PSI, Euclidean, FixedRank, Grassmann, Sphere, Stiefel
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.optim.options import COMMON, OPTIONS
from torch import nn

MANIFOLDS = [Euclidean(0), PSI(), Sphere(), Stiefel(), FixedRank(3, 3)]


class Uphill(RiemannianSGD):
    rule = Signed()


def on(manifold, device):
    torch.manual_seed(0)
    return nn.Parameter(manifold.random_point(6, 3, dtype=torch.float64, device=device))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_a_subclass_of_a_rule_is_called(manifold, device):
    """The kernels and torch's functions know what its parent does, and must not run."""
    ends = []
    for make, options in ((Uphill, {}), (RiemannianSGD, {"maximize": True})):
        w = on(manifold, device)
        optimizer = make([{"params": [w], "manifold": manifold}], lr=0.1, **options)
        w.grad = torch.ones_like(w).cumsum(0)
        optimizer.step()
        ends.append(w.detach())
    assert torch.allclose(*ends)


@pytest.mark.parametrize("rule", RULES[:3], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_rules_keep_what_they_like(rule, manifold, device):
    """State per point and per coordinate, tangent after every step, resumed bitwise."""
    goal = manifold.random_point(6, 3, dtype=torch.float64, device=device)

    def run(resume_at):
        w = on(manifold, device)
        group = [{"params": [w], "manifold": manifold}]
        optimizer = optimizer_of(rule)(group, {"lr": 0.1})
        losses = []
        for step in range(40):
            if step == resume_at:
                state, optimizer = optimizer.state_dict(), optimizer_of(rule)(group, {"lr": 0.1})
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            loss = (nn.functional.normalize(w, dim=0 if manifold == Stiefel() else 1) - goal).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            state = optimizer.state[w]
            for name in rule.vectors:
                manifold.check_tangent(w.detach(), state[name])
            assert all(state[name].ndim == w.ndim for name in rule.scalars)
        return torch.stack(losses)

    losses = run(None)
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(losses, run(17))


@pytest.mark.parametrize("optimizer", [RiemannianSGD, RiemannianAdam])
def test_signatures_have_the_defaults_of_the_table(optimizer):
    """Of options that only one of them has, too."""
    found = inspect.signature(optimizer).parameters
    assert {
        name for name, its in found.items() if name in OPTIONS and name != "lr" and its.default != OPTIONS[name].default
    } == set()
    made = optimizer([nn.Parameter(torch.ones(2))]).defaults
    assert {name: made[name] for name in COMMON} == {name: option.default for name, option in COMMON.items()}


@pytest.mark.parametrize("radius", ["hold", "free"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_every_path_takes_them(rule, manifold, radius, device):
    """The same steps in every backend, clipped and not, with the state of one loaded into the other."""
    options = {
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": False,
        "momentum_form": "heavy_ball",
        "radius": radius,
    }
    for changes in ({}, {"max_point_norm": 0.5, "maximize": True}, {"motion": "exp", "transport": "project"}):
        ends = []
        for path in ({"foreach": False}, {"foreach": True}, {} if len(rule.vectors) > 1 else {"fused": True}):
            params = [on(manifold, device), nn.Parameter(on(manifold, device).detach()[:2].clone())]
            optimizer = optimizer_of(rule)([{"params": params, "manifold": manifold, **path}], options | changes)
            for step in range(5):
                if step == 3:
                    optimizer.load_state_dict(optimizer.state_dict())
                for p in params:
                    p.grad = manifold.project(p.detach(), torch.sin(torch.arange(p.numel()) + step).to(p).view_as(p))
                optimizer.step()
            ends.append([*params, *(value for p in params for value in optimizer.state[p].values())])
        for others in ends[1:]:
            for ours, theirs in zip(ends[0], others, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-12, rtol=1e-12)


def test_row_kernels_move_one_vector(device):
    with pytest.raises(OptionError, match="row kernels support one vector per point, and Averaged has 2"):
        optimizer_of(Averaged())([{"params": [on(PSI(), device)], "manifold": PSI(), "fused": True}], {"lr": 0.1})


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_options_of_their_own_may_change_between_steps(manifold, device):
    ends = []
    for path in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        w = on(manifold, device)
        optimizer = optimizer_of(Switched())([{"params": [w], "manifold": manifold, **path}], {"lr": 0.1, "share": 0.0})
        for step, share in enumerate((0.0, 0.0, 0.9, 0.9, 0.5, 0.3)):
            optimizer.param_groups[0]["share"] = share
            w.grad = manifold.project(w.detach(), torch.sin(torch.arange(w.numel()) + step).to(w).view_as(w))
            optimizer.step()
        ends.append(torch.stack([w.detach(), optimizer.state[w]["memory"]]))
    assert all(torch.allclose(ends[0], other, atol=1e-12, rtol=1e-12) for other in ends[1:])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("manifold", [Sphere(), Grassmann(1)], ids=repr)
def test_what_a_projection_leaves_of_a_radial_gradient_is_tangent(manifold, path, device):
    """It is rounding, which a rule that divides by lengths brings to the length of a step."""
    w = nn.Parameter(manifold.random_point(6, 40, device=device))
    rule = RMSprop(eps=1e-12)
    options = {"lr": 0.3, "transport": "project"}
    optimizer = optimizer_of(rule)([{"params": [w], "manifold": manifold, **PATHS[path]}], options)
    w.grad = w.detach() + 1e-6 * nn.functional.normalize(torch.randn_like(w), dim=1)
    optimizer.step()
    x, v = w.detach().double(), optimizer.state[w]["momentum_buffer"].double()
    assert ((x.norm(dim=1) - 1).abs() < 1e-6).all()
    assert ((x * v).sum(1).abs() < 2e-6 * v.norm(dim=1)).all()
    assert (v.norm(dim=1) > 0.1).all()
