"""Steps of slices: equal to those of parameters of their own, equivalent for equivalent factors, with their state."""

import copy
import io

import optimizers
import pytest
import retract
import torch
from retract.errors import DeclarationError, GradientError, OptionError, StateError
from retract.manifolds import PSI, Factors, FixedRank, Part, ProjectiveSpace, Rows, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD
from slices import PAIRS, VALUE_OUT, act_at_random, declared_network, network
from torch import nn


class Apart(nn.Module):
    """What `Fused` has in one parameter, as three."""

    def __init__(self, fused):
        super().__init__()
        first, other, rest = (nn.Parameter(piece.detach().clone()) for piece in fused.split([6, 8, 5]))
        self.first, self.other, self.rest = first, other, rest

    def whole(self):
        return torch.cat([self.first, self.other, self.rest])


class Fused(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(19, 12, dtype=torch.float64).to(dtype))

    def whole(self):
        return self.weight


def pair(manifold, dtype, generator):
    fused = Fused(dtype)
    apart = Apart(fused.weight)
    rows = Rows(blocks=2) if manifold.event_ndim == 1 else Rows(blocks=2, columns=0)
    one = manifold.event_ndim == 1
    retract.declare(apart, "first", manifold, rows)
    retract.declare(apart, "other", manifold, rows)
    retract.declare(
        fused,
        Part("weight", 0, 0, 2, 1 if one else 3, ((3, 1),) if one else ())
        if not one
        else Part("weight", 0, 0, ((2, 3),), 1, ((3, 1),)),
        manifold,
    )
    retract.declare(
        fused, Part("weight", 0, 6, ((2, 4),), 1, ((4, 1),)) if one else Part("weight", 0, 6, 2, 4), manifold
    )
    return fused, apart


def loss(model, x, y):
    return (torch.tanh(x @ model.whole().to(x.dtype).T) - y).square().mean() * 30


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), ProjectiveSpace(), Stiefel()], ids=repr)
@pytest.mark.parametrize("make", optimizers.OPTIMIZERS.values(), ids=optimizers.OPTIMIZERS)
def test_slices_step_as_parameters_of_their_own(make, manifold, dtype, generator):
    fused, apart = pair(manifold, dtype, generator)
    x, y = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, 19, dtype=torch.float64)
    options = {"orthogonality": 0.0} if manifold.event_ndim == 2 else {}
    ours, theirs = (make(retract.param_groups(model), **options) for model in (fused, apart))
    for _ in range(5):
        for model, optimizer in ((fused, ours), (apart, theirs)):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
    assert not torch.equal(apart.rest, Apart(fused.whole() * 0).rest)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert torch.allclose(fused.whole(), apart.whole(), rtol=tolerance, atol=tolerance)
    for name in optimizer.rule.vectors:
        if name in theirs.state[apart.rest]:
            expected = torch.cat([theirs.state[p][name] for p in (apart.first, apart.other, apart.rest)])
            assert torch.allclose(ours.state[fused.weight][name], expected, rtol=tolerance, atol=tolerance)


STEPS = {
    "SGD": lambda groups: RiemannianSGD(groups, lr=0.05),
    "momentum, carried unchanged": lambda groups: RiemannianSGD(groups, lr=0.02, momentum=0.9, transport="none"),
    "momentum, projected": lambda groups: RiemannianSGD(groups, lr=0.02, momentum=0.9, transport="project"),
    "Adam": lambda groups: RiemannianAdam(groups, lr=0.003),
}


def curve(model, make, steps, x, y):
    optimizer, losses = make(retract.param_groups(model)), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = (model(x) - y).square().mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_equivalent_factors_stay_equivalent(make, generator):
    """Theorem 1 of Yi (2022) for pairs: queries and keys, values and outputs, hidden units of ReLU."""
    model = declared_network()
    start = copy.deepcopy(model)
    twin = act_at_random(copy.deepcopy(model), generator)
    x, y = torch.randn(2, 5, 6, 8, dtype=torch.float64, generator=generator)
    assert torch.allclose(model(x), twin(x), atol=1e-10)
    ours, theirs = curve(model, make, 100, x, y), curve(twin, make, 100, x, y)
    assert (ours - theirs).abs().max() <= 1e-10
    assert ours[-1] < ours[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert moved == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_plain_optimizers_train_equivalent_factors_differently(make, generator):
    model = network()
    twin = act_at_random(declared_network(), generator)
    x, y = torch.randn(2, 5, 6, 8, dtype=torch.float64, generator=generator)
    curves = []
    for each in (model, twin):
        optimizer, losses = make(each.parameters(), lr=0.01), []
        for _ in range(100):
            optimizer.zero_grad()
            value = (each(x) - y).square().mean()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        curves.append(torch.tensor(losses))
    gap = (curves[0] - curves[1]).abs().max()
    assert gap > 1e-2 or not torch.isfinite(gap)


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_run_resumes_from_its_state_dict(make, generator):
    x, y = torch.randn(2, 5, 6, 8, dtype=torch.float64, generator=generator)
    models, optimizers = [], []
    for _ in range(2):
        models.append(declared_network())
        optimizers.append(make(retract.param_groups(models[-1])))

    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()

    train(models[0], optimizers[0], 3)
    file = io.BytesIO()
    torch.save([models[0].state_dict(), optimizers[0].state_dict()], file)
    weights, state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    models[1].load_state_dict(weights)
    optimizers[1].load_state_dict(state)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_a_state_dict_of_other_slices_is_refused():
    model, other = declared_network(), network()
    for factors, manifold in [*PAIRS.items()][1:]:
        retract.declare(other, factors, manifold)
    saved = RiemannianAdam(retract.param_groups(other), lr=0.1).state_dict()
    with pytest.raises(StateError):
        RiemannianAdam(retract.param_groups(model), lr=0.1).load_state_dict(saved)


def test_heads_of_all_layers_are_one_stack(generator):
    """Equal to one optimizer per layer, whose stacks are smaller."""
    x, y = torch.randn(2, 5, 6, 8, dtype=torch.float64, generator=generator)

    def layers():
        return nn.Sequential(declared_network(), declared_network())

    together, apart = layers(), layers()
    ours = [RiemannianAdam(retract.param_groups(together), lr=0.01)]
    theirs = [RiemannianAdam(retract.param_groups(layer), lr=0.01) for layer in apart]
    for _ in range(3):
        for model, its in ((together, ours), (apart, theirs)):
            model.zero_grad()
            (model(x) - y).square().mean().backward()
            for optimizer in its:
                optimizer.step()
    assert all(map(torch.equal, together.parameters(), apart.parameters()))
    (group,) = ours[0].param_groups[:1]
    assert group["name"] == "slices"


@pytest.mark.parametrize(
    "options", [{}, {"max_point_norm": 0.05}, {"maximize": True}, {"transport": "none"}, {"nesterov": True}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("degree", [1.0, 2.0])
def test_units_in_place_are_the_reference(dtype, degree, options, generator):
    """Also where points run through several dimensions, and in parts of which one has more rows."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.ParameterDict({"a": torch.randn(2, 3, 4), "b": torch.randn(2, 3), "c": torch.randn(2, 5, 6)}).to(
            dtype
        )
        right = (Part("c", (0, 2), 0, ((2, 6), (3, 1)), 1, ((2, 3),)),)
        retract.declare(
            model, Factors((Part("a", (0, 1)), Part("b", (0, 1))), right), FixedRank(1, degree=degree, damping=0.01)
        )
        models.append(model)
    makes = [lambda g, **o: RiemannianSGD(g, lr=0.1, momentum=0.9, **o)]
    if "nesterov" not in options:
        makes.append(lambda g, **o: RiemannianAdam(g, lr=0.1, **o))
    for make in makes:
        ours, theirs = (
            make(retract.param_groups(models[0]), **options),
            make(retract.param_groups(models[1]), foreach=False, **options),
        )
        for _ in range(4):
            for name, p in models[0].items():
                p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
                models[1][name].grad = p.grad.clone()
            ours.step()
            theirs.step()
        bound = 1e-12 if dtype == torch.float64 else 1e-4
        for name, p in models[0].items():
            assert torch.allclose(p, models[1][name], rtol=bound, atol=bound)
            for key, value in ours.state[p].items():
                assert torch.allclose(value, theirs.state[models[1][name]][key], rtol=bound, atol=bound), key


def test_a_still_step_changes_no_bit():
    model = declared_network()
    before = copy.deepcopy(model)
    for make in (lambda g: RiemannianSGD(g, lr=0.0, momentum=0.9), lambda g: RiemannianAdam(g, lr=0.0)):
        optimizer = make(retract.param_groups(model))
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(2, 3, 8, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_errors_name_the_slices_and_nothing_moves(generator):
    model = declared_network()
    optimizer = RiemannianSGD(retract.param_groups(model), lr=0.1)
    before = copy.deepcopy(model)
    model(torch.randn(2, 3, 8, dtype=torch.float64)).square().sum().backward()
    model[1].bias.grad = None
    with pytest.raises(GradientError, match=r"3\.weight\[dim 1"):
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), before.parameters()))
    with pytest.raises(OptionError, match=r"differentiable=True on .*weight"):
        RiemannianSGD(retract.param_groups(model), lr=0.1, differentiable=True)
    with pytest.raises(OptionError, match="weight_decay"):
        RiemannianSGD(retract.param_groups(model, manifold={"weight_decay": 0.1}), lr=0.1)
    with pytest.raises(OptionError, match="motion='exp'"):
        RiemannianSGD(retract.param_groups(model, manifold={"motion": "exp"}), lr=0.1)
    group = {"params": [model[1].weight], "names": ["a"], "slices": [(PSI(), Factors((Part("b"),)))]}
    with pytest.raises(OptionError, match="slices of b"):
        PSISGD([group], lr=0.1)


def test_slices_that_are_declared_after_the_optimizer_was_built_are_noticed():
    model = declared_network()
    retract.undeclare(model, VALUE_OUT)
    optimizer = RiemannianSGD(retract.param_groups(model), lr=0.1)
    retract.declare(model, Part("0.qkv.weight", start=23), PSI())
    model(torch.randn(2, 3, 8, dtype=torch.float64)).sum().backward()
    with pytest.raises(DeclarationError, match="Build a new optimizer"):
        optimizer.step()


def test_clipping_and_averages_see_slices(generator):
    model = declared_network()
    twin = act_at_random(copy.deepcopy(model), generator)
    x = torch.randn(5, 6, 8, dtype=torch.float64, generator=generator)
    lengths, averages = [], []
    for each in (model, twin):
        optimizer = RiemannianSGD(retract.param_groups(each), lr=0.1)
        average = torch.optim.swa_utils.AveragedModel(each, multi_avg_fn=retract.optim.get_multi_avg_fn(each))
        for _ in range(3):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            lengths.append(float(retract.optim.clip_riemannian_norm_(optimizer, 0.1)))
            optimizer.step()
            average.update_parameters(each)
        averages.append(average.module(x))
    assert lengths[:3] == pytest.approx(lengths[3:])
    assert torch.allclose(*averages, rtol=1e-9)
    assert not torch.allclose(averages[0], model(x))
