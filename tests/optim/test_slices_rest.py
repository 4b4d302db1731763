"""What is left of a parameter that is cut into slices is stepped as a parameter in flat space; and slices in half precision."""

import copy

import pytest
import retract
import torch
from retract.errors import OptionError
from retract.manifolds import PSI, Factors, FixedRank, Part
from retract.optim import SGDG, RiemannianAdam, RiemannianSGD
from torch import nn


def pair(dtype=torch.float64, size=1.0):
    """One parameter of which some rows are declared, and the same as two parameters."""
    torch.manual_seed(0)
    whole = (size * torch.randn(10, 6, dtype=torch.float64)).to(dtype)
    fused = nn.ParameterDict({"w": whole.clone()})
    apart = nn.ParameterDict({"w": whole[:4].clone(), "x": whole[4:].clone()})
    retract.declare(fused, Part("w", points=4), PSI())
    retract.declare(apart, "w", PSI())
    return fused, apart


def steps(model, optimizer, number, dtype=torch.float64, after=lambda: None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        grad = torch.randn(10, 6, dtype=torch.float64, generator=generator).to(dtype)
        for p, own in zip(model.values(), grad.split([4, 6]) if len(model) > 1 else [grad], strict=True):
            p.grad = own.clone()
        optimizer.step()
        after()
    return torch.cat([*model.values()]).detach()


SCHEDULES = {
    "none": lambda optimizer, own: None,
    "from 0": lambda optimizer, own: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 3),
    # It changes the momentum of the group, and so of a rest that has none of its own.
    "one cycle": lambda optimizer, own: torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=9,
        cycle_momentum=own.isdisjoint({"momentum", "betas"}),
    ),
}
MAKES = {
    "SGD": (RiemannianSGD, {"lr": 0.05, "momentum": 0.9}, {"lr": 0.2}, {"lr": 0.01, "weight_decay": 0.3}),
    "SGD, no options of their own": (RiemannianSGD, {"lr": 0.05}, {"lr": 0.2}, {}),
    "Nesterov": (RiemannianSGD, {"lr": 0.05}, {"lr": 0.2}, {"momentum": 0.8, "nesterov": True}),
    "SGDG": (SGDG, {}, {}, {"lr": 0.01, "nesterov": True, "momentum_form": "heavy_ball"}),
    "Adam without a rate": (RiemannianAdam, {}, {}, {"weight_decay": 0.1}),
    "Adam": (RiemannianAdam, {"lr": 0.02}, {"lr": 0.05}, {"betas": (0.8, 0.95), "eps": 1e-3}),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("make", "options", "manifold", "euclidean"), MAKES.values(), ids=MAKES)
def test_the_rest_is_stepped_as_a_parameter_in_flat_space(make, options, manifold, euclidean, schedule):
    """With its own rate, which follows a schedule, decay and momentum; interrupted by a checkpoint."""
    found = []
    for model in pair():
        optimizer = make(retract.param_groups(model, manifold=manifold, euclidean=euclidean), **options)
        scheduler = schedule(optimizer, {*euclidean})
        after = scheduler.step if scheduler is not None else lambda: None
        steps(model, optimizer, 3, after=after)
        saved = copy.deepcopy(optimizer.state_dict())
        # What is loaded replaces the options that the groups were made with.
        optimizer = make(retract.param_groups(model), **{"lr": 0.7, **options})
        optimizer.load_state_dict(saved)
        found.append(steps(model, optimizer, 3))
    assert torch.allclose(*found, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[0][4:], torch.cat([*pair()[0].values()])[4:])


def test_a_rate_of_adam_is_an_angle_for_slices_alone():
    model = nn.ParameterDict({"a": torch.randn(5, 9), "b": torch.randn(8, 4)})
    retract.declare(model, Factors((Part("a", 1, 0, 8),), (Part("b"),)), FixedRank(1))
    before = model["a"].detach().clone()
    optimizer = RiemannianAdam(retract.param_groups(model))
    for p in model.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    moved = (model["a"] - before).abs()
    assert torch.allclose(moved[:, 8], torch.tensor(1e-3), rtol=1e-2)
    assert moved[:, :8].max() > 1e-2


def test_what_cannot_be_an_option_of_the_rest():
    model, _ = pair()
    for euclidean, message in (
        ({"wd": 0.1}, "weight_decay"),
        ({"lr": -1.0}, r"lr=-1.0 is outside"),
        ({"weight_decay": "0.1"}, "without quotes"),
        ({"nesterov": True}, "nesterov needs momentum"),
        ({"differentiable": True}, "differentiable=True on the rest of w"),
    ):
        with pytest.raises(OptionError, match=message):
            RiemannianSGD(retract.param_groups(model, euclidean=euclidean), lr=0.1)
    with pytest.raises(OptionError, match="multiple"):
        RiemannianSGD(retract.param_groups(model, manifold={"lr": 0.0}), lr=0.1)
    with pytest.raises(OptionError, match="without slices"):
        RiemannianSGD([{"params": [*model.values()], "manifold": PSI(), "euclidean": {"lr": 0.1}}], lr=0.1)
    optimizer = RiemannianSGD(retract.param_groups(model, euclidean={"lr": 0.01}), lr=0.1)
    (group,) = optimizer.param_groups
    assert group["euclidean"] == {"lr_scale": pytest.approx(0.1)}
    before = model["w"].detach().clone()
    for value, message in (({"lr_scale": -1.0}, "outside"), ({"lr": 0.1}, "no option 'lr'"), (0.1, "no dict")):
        group["euclidean"] = value
        with pytest.raises(OptionError, match=message):
            steps(model, optimizer, 1)
    assert torch.equal(model["w"], before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_slices_in_half_precision_have_the_band_of_their_dtype(dtype):
    """Rows of a norm of about 700 come back in float16 and stay in bfloat16, as those of a whole parameter; the rest is equal bit by
    bit."""
    found, norms = [], []
    for model in pair(dtype, 300.0):
        optimizer = RiemannianSGD(retract.param_groups(model), lr=1e-7, momentum=0.9, radius="free")
        found.append(steps(model, optimizer, 3, dtype))
        norms.append(found[-1][:4].float().norm(dim=1))
    assert torch.equal(*found)
    assert all((norm < 100).all() if dtype == torch.float16 else (norm > 100).all() for norm in norms)
