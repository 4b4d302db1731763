"""Rules of a user's own: every path calls them or refuses them, whatever they keep."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from retract.manifolds import PSI, Euclidean, Sphere, Stiefel
from retract.manifolds.errors import OptionError
from retract.optim import RiemannianAdam, RiemannianOptimizer, RiemannianSGD, Rule, Scaled
from retract.optim.options import COMMON
from retract.optim.rules import Momentum
from torch import nn

MANIFOLDS = [Euclidean(0), PSI(), Sphere(), Stiefel()]


@dataclass(frozen=True)
class Signed(Momentum):
    """Momentum the other way."""

    def __call__(self, *arguments):
        return super().__call__(*arguments).times(-1.0)


class Uphill(RiemannianSGD):
    rule = Signed()


@dataclass(frozen=True)
class Normalized(Rule):
    """A step of length lr / (1 + number of steps): no vector, two numbers."""

    scalars = ("length", "count")

    def __call__(self, manifold, x, gradient, memory, options, scale):
        size = manifold.norm(x, gradient.array) * gradient.factor
        memory.scalars["length"].copy_(size)
        memory.scalars["count"].add_(1.0)
        return gradient.times(
            -options["lr"] / (size * (1.0 + memory.scalars["count"])) * (1.0 if scale is None else scale)
        )


@dataclass(frozen=True)
class Averaged(Rule):
    """The mean of two averages of the gradients: two vectors."""

    vectors = ("fast", "slow")

    def __call__(self, manifold, x, gradient, memory, options, scale):
        keep = 1.0 if scale is None else scale
        for name, share in (("fast", 0.5), ("slow", 0.9)):
            gradient.times(keep).add_to_(memory.vectors[name].mul_(share * keep), 1.0 - share)
        return Scaled(0.5 * (memory.vectors["fast"] + memory.vectors["slow"]), -options["lr"])


def optimizer_of(its):
    class Own(RiemannianOptimizer):
        rule = its

    return Own


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


@pytest.mark.parametrize("rule", [Normalized(), Averaged()], ids=lambda rule: type(rule).__name__)
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
def test_options_of_every_group_have_the_defaults_of_the_librarys_own(optimizer):
    signature = inspect.signature(optimizer).parameters
    assert {name: signature[name].default for name in COMMON} == COMMON


@pytest.mark.parametrize("path", ["foreach", "fused"])
def test_paths_that_know_other_rules_only(path, device):
    with pytest.raises(OptionError, match=f"{path}=True: Signed runs on the reference path, which takes any rule"):
        Uphill([{"params": [on(PSI(), device)], "manifold": PSI()}], lr=0.1, **{path: True})
