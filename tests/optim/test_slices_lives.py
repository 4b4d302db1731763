"""Slices in the life of a run: several sets of one parameter, counters that differ, penalties, marks, large gradients, half precision."""

import copy
import pickle

import pytest
import retract
import torch
from retract.errors import DeclarationError, GeometryError, OptionError
from retract.manifolds import PSI, Factors, FixedRank, Part, Sphere
from retract.optim import RiemannianAdam, RiemannianSGD, clip_riemannian_norm_
from slices import declared_network
from torch import nn


def holder(**shapes):
    torch.manual_seed(0)
    return nn.ParameterDict({name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()})


def set_gradients(model, generator, size=1.0):
    for p in model.parameters():
        p.grad = size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def test_clipping_scales_a_gradient_once(generator):
    model = holder(w=(6, 5))
    for start in (0, 2, 4):
        retract.declare(model, Part("w", start=start, points=2), PSI())
    optimizer = RiemannianSGD(retract.param_groups(model), lr=0.1)
    set_gradients(model, generator)
    clip_riemannian_norm_(optimizer, 1.0)
    assert float(clip_riemannian_norm_(optimizer, 1.0)) == pytest.approx(1.0, rel=1e-4)


def test_sets_that_have_made_different_numbers_of_steps(generator):
    """Also in a captured step, which cannot read its counters."""
    models = [holder(a=(6, 8), b=(6, 8)) for _ in range(2)]
    runs = []
    for model, capturable in zip(models, (True, False), strict=True):
        for name in "ab":
            retract.declare(model, Part(name, points=6), PSI())
        runs.append(RiemannianAdam(retract.param_groups(model), lr=0.1, capturable=capturable))
    for step in range(5):
        for model in models:
            set_gradients(model, generator.manual_seed(step))
            if step < 3:
                model["a"].grad = None
        for optimizer in runs:
            optimizer.step()
    steps = [float(runs[0].state[models[0][name]]["step.0"]) for name in "ab"]
    assert steps == [2.0, 5.0]
    assert all(map(torch.allclose, models[0].parameters(), models[1].parameters()))


def test_a_penalty_couples_the_points_of_one_set(generator):
    fused, apart = holder(w=(8, 12)), holder(v=(4, 12), w=(4, 12))
    with torch.no_grad():
        apart["v"].copy_(fused["w"][:4])
        apart["w"].copy_(fused["w"][4:])
    retract.declare(fused, Part("w", points=4), PSI())
    retract.declare(fused, Part("w", start=4), PSI())
    for name in "vw":
        retract.declare(apart, name, PSI())
    for model in (fused, apart):
        optimizer = RiemannianSGD(retract.param_groups(model), lr=0.1, orthogonality=1.0)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.allclose(fused["w"], torch.cat([apart["v"], apart["w"]]))


def test_two_sets_of_units_on_one_parameter_begin_alike(generator):
    models = []
    for _ in range(2):
        models.append(holder(a=(5, 8), b=(8, 4)))
        for start in (0, 4):
            factors = Factors((Part("a", 1, start, 4),), (Part("b", 0, start, 4),))
            retract.declare(models[-1], factors, FixedRank(1))
    makes = [{}, {"foreach": False}]
    for model, options in zip(models, makes, strict=True):
        optimizer = RiemannianSGD(
            retract.param_groups(model), lr=torch.tensor([0.1]), momentum=0.9, dampening=0.5, **options
        )
        for step in range(3):
            set_gradients(model, generator.manual_seed(step))
            optimizer.step()
    assert all(map(torch.allclose, models[0].parameters(), models[1].parameters()))


def test_a_gradient_whose_square_does_not_fit_is_clipped(generator):
    models = []
    for _ in range(2):
        models.append(holder(a=(5, 8), b=(8, 4)).float())
        retract.declare(models[-1], Factors((Part("a", 1),), (Part("b"),)), FixedRank(1))
    for model, options in zip(models, ({}, {"foreach": False}), strict=True):
        optimizer = RiemannianAdam(retract.param_groups(model), lr=0.1, max_point_norm=1.0, **options)
        for step, size in enumerate((1.0, 1e20, 1e-25, 1.0)):
            set_gradients(model, generator.manual_seed(step), size)
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_second_moments_of_the_rest_of_a_half_precision_weight_stay_as_they_are(generator):
    model = holder(w=(6, 5)).bfloat16()
    retract.declare(model, Part("w", points=2), PSI())
    optimizer = RiemannianAdam(retract.param_groups(model), lr=0.01)
    set_gradients(model, generator)
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[model["w"]].items()}
    other = RiemannianAdam(retract.param_groups(model), lr=0.01)
    other.load_state_dict(optimizer.state_dict())
    after = other.state[model["w"]]
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


def test_levels_that_carry_in_between_are_refused():
    w = torch.arange(36).view(2, 3, 6)
    with pytest.raises(GeometryError, match="crosses"):
        Part("w", dim=(0, 2), points=((3, 4),), columns=1).grid(w.shape)


def test_slices_of_other_points_have_other_names():
    parts = [
        Part("w", points=((2, 6),), rows=((6, 1),)),
        Part("w", points=((2, 6), (6, 1))),
        Part("w", points=2, columns=6),
    ]
    assert len({str(part.resolved((12, 4))) for part in parts}) == 3


def test_what_a_lost_module_declared_is_missed():
    class Pair(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.a, self.b = a, b

    root = Pair(holder(v=(8, 5)), holder(w=(8, 5)))
    retract.declare(root.a, Part("v", points=4), PSI())
    retract.declare(root.b, Part("w", points=4), PSI())
    retract.declare(root, Factors((Part("a.v", start=4),), (Part("b.w", start=4),)), FixedRank(1))
    with pytest.raises(DeclarationError, match="the module that has this declaration is not in this model"):
        retract.param_groups(Pair(root.a, root.b))
    assert len(retract.declared(root)) == 3


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copied_run_goes_on(way, generator):
    model = declared_network()
    optimizer = RiemannianAdam(retract.param_groups(model), lr=0.01)
    set_gradients(model, generator)
    optimizer.step()
    model, optimizer = way((model, optimizer))
    set_gradients(model, generator)
    optimizer.step()
    factors = next(iter(retract.declared(model).values())).given
    retract.undeclare(model, next(iter(retract.declared(model))))
    set_gradients(model, generator)
    optimizer.step()  # it keeps what was undeclared
    retract.declare(model, factors, FixedRank(1))
    optimizer.step()


def test_groups_by_hand_are_checked():
    model = holder(a=(5, 8), b=(8, 4))
    slices = [(FixedRank(1, 5), Factors((Part("a", 1),), (Part("b"),)))]
    group = {"params": [*model.values()], "names": ["a", "b"], "slices": slices}
    RiemannianSGD([group], lr=0.1)
    with pytest.raises(OptionError, match="leave out manifold"):
        RiemannianSGD([{**group, "manifold": Sphere()}], lr=0.1)
    with pytest.raises(GeometryError, match="same number"):
        RiemannianSGD(
            [{**group, "slices": [(FixedRank(1, 5), Factors((Part("a", 1),), (Part("b", points=4),)))]}], lr=0.1
        )
    model["b"] = model["b"].float()
    with pytest.raises(OptionError, match="one dtype"):
        RiemannianSGD([{**group, "params": [*model.values()]}], lr=0.1)
