"""Averages along the training, with torch's AveragedModel."""

import copy
import io

import geoopt
import pytest
import torch
from geometries import CASES
from networks import batches, declare_all, invariant_names, normed_cnn, points_of, train
from retract import declare, param_groups, psi
from retract.errors import DeclarationError, OptionError
from retract.manifolds import PSI, Euclidean, GeodesicManifold, Grassmann, QuotientManifold, Rows, Sphere, numerics
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.rows import scatter_
from retract.optim import PSISGD, get_multi_avg_fn
from torch import nn
from torch.optim.swa_utils import (
    SWALR,
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

CURVED = [case for case in CASES if not isinstance(case.manifold, Euclidean)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
DECAYS = [None, 0.7]
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 3e-2}


class Holder(nn.Module):
    """One declared parameter."""

    def __init__(self, manifold, points):
        super().__init__()
        self.w = nn.Parameter(points)
        declare(self, "w", manifold)


def averaged_of(models, decay=None, **options):
    """The AveragedModel of `models`, the first of which is the one that is trained."""
    result = AveragedModel(models[0], multi_avg_fn=get_multi_avg_fn(models[0], decay), **options)
    for model in models:
        result.update_parameters(model)
    return result.module


@torch.no_grad()
def moved(model, change):
    """A copy of `model` with points ``change(manifold, x)`` for its points x."""
    twin = copy.deepcopy(model)
    for manifold, x, where in points_of(twin):
        scatter_(change(manifold, x), *where)
    return twin


def ahead(manifold, x):
    """A step of length ½ in a random direction."""
    u = manifold.random_tangent(x)
    return manifold.retract(x, 0.5 * u / manifold.norm(x, u))


def other_representative(manifold, x):
    if not isinstance(manifold, QuotientManifold):
        return x.clone()
    if isinstance(manifold, GeodesicManifold):
        return manifold.act(manifold.random_group_element(x), x)
    # Without a logarithm representatives are averaged as they are: those of one run, which all change in the same way. The element
    # is well conditioned, so that half precision can say the point.
    g = manifold.random_group_element(x, generator=torch.Generator(x.device).manual_seed(0))
    return manifold.act(2.0 * torch.linalg.qr(g)[0].abs() if g.shape[-1] == 1 else 2.0 * torch.linalg.qr(g)[0], x)


def gap(manifold, x, y):
    """How far `x` and `y` are from being the same point, relative to x."""
    y = manifold.align(x, y) if isinstance(manifold, QuotientManifold) else y
    return (numerics.norm(x - y, manifold.event_ndim) / numerics.norm(x, manifold.event_ndim)).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("case", CURVED, ids=lambda case: case.id)
def test_averages_lie_on_the_manifold_and_no_representative_enters(case, decay, dtype, device):
    m = case.manifold
    models = [Holder(m, m.random_point(3, *case.shape, dtype=torch.float64).to(device, dtype))]
    for _ in range(4):
        models.append(moved(models[-1], ahead))
    result = averaged_of(models, decay)
    ((_, mean, _),) = points_of(result)
    ((_, first, _),) = points_of(models[0])
    m.check_point(mean, "the average", numerics.tolerance(torch.float16) if dtype == torch.bfloat16 else None)
    assert result.w.dtype == dtype
    assert gap(m, mean, first) > 0.05, "the average has not moved"
    ((_, other, _),) = points_of(averaged_of([moved(model, other_representative) for model in models], decay))
    assert gap(m, mean, other) <= ROUNDING[dtype]
    if isinstance(m, QuotientManifold) and not isinstance(m, GeodesicManifold):
        return
    ((_, same, _),) = points_of(averaged_of([models[0], *[moved(models[0], other_representative)] * 3], decay))
    assert gap(m, first, same) <= ROUNDING[dtype]
    assert (
        numerics.norm(first - same, m.event_ndim).max()
        <= 10 * ROUNDING[dtype] * numerics.norm(first, m.event_ndim).max()
    )


@pytest.mark.parametrize(
    "case", [case for case in CURVED if isinstance(case.manifold, GeodesicManifold)], ids=lambda case: case.id
)
def test_weights_along_a_geodesic(case, device):
    """Points at times 0 … 4 of a geodesic average to the one at time 2; an EMA of them lies where numbers would."""
    m = case.manifold
    x = m.random_point(3, *case.shape, dtype=torch.float64, device=device)
    u = m.random_tangent(x)
    u = 0.3 * u / m.norm(x, u)
    models = [moved(Holder(m, m.geodesic(x, u, float(t))), other_representative) for t in range(5)]
    assert gap(m, m.geodesic(x, u, 2.0), averaged_of(models).w.detach()) <= 1e-12
    time = 0.0
    for t in range(1, 5):
        time = 0.9 * time + 0.1 * t
    assert gap(m, m.geodesic(x, u, time), averaged_of(models, 0.9).w.detach()) <= 1e-12


def zoo(manifold, dtype=torch.float64, device="cpu"):
    """Every way in which vectors can lie in parameters, with flat parameters and buffers in between."""
    model = nn.ModuleDict(
        {
            "flat": nn.Linear(4, 3),
            "joint": nn.Linear(4, 3),
            "norm": nn.BatchNorm1d(3),
            "conv": nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False),
            "blocks": nn.Linear(3, 4, bias=False),
            "image": nn.Conv2d(3, 2, 3, bias=False).to(memory_format=torch.channels_last),
            "plane": nn.Linear(4, 2),
        }
    ).to(dtype=dtype, device=device)
    declare(model, "joint.weight", manifold, joined=("bias",))
    declare(model, "conv.weight", manifold, rows=Rows(dim=1, groups=2))
    declare(model, "blocks.weight", manifold, rows=Rows(blocks=2))
    declare(model, "image.weight", manifold)
    declare(model, "plane.weight", Euclidean(1))
    return model


@torch.no_grad()
def onward(model):
    """A copy of `model` further on: points, flat parameters and buffers."""
    twin = moved(model, ahead)
    declared = {part for _, _, parts, *_ in walk(twin) for part in parts}
    for tensor in {*twin.parameters()} - declared | {*twin.buffers()}:
        tensor.add_(3 * torch.rand_like(tensor) if tensor.is_floating_point() else 5)
    return twin


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_every_layout_is_averaged_among_all_dtypes(manifold, use_buffers, device):
    """Two dtypes, so that AveragedModel hands over several lists; half of every way, and the norm of the first."""
    first = nn.ModuleList([zoo(manifold, dtype, device) for dtype in (torch.float64, torch.float32, torch.float64)])
    second = onward(first)
    result = averaged_of([first, second], use_buffers=use_buffers)
    count = 0
    for (m, x, (parts, _)), (_, y, _), (_, mean, _) in zip(*map(points_of, (first, second, result)), strict=True):
        rounding = ROUNDING[parts[0].dtype]
        assert (m.dist(x, mean) - 0.5 * m.dist(x, y)).abs().max() <= rounding
        assert (m.dist(mean, y) - 0.5 * m.dist(x, y)).abs().max() <= rounding
        assert m.dist(x, y).min() > 0.05
        assert (mean.norm(dim=-1) / x.norm(dim=-1) - 1).abs().max() <= rounding or isinstance(m, Euclidean)
        count += 1
    assert count == 15


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_flat_parameters_and_buffers_are_averaged_as_by_torch(use_buffers, decay, dtype, device):
    """Bitwise, next to points and alone; counters of batches as AveragedModel does on its own."""
    models = [zoo(PSI(), dtype, device)]
    for _ in range(3):
        models.append(onward(models[-1]))
    ours = averaged_of(models, decay, use_buffers=use_buffers)
    floating = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)

    def torchs(averaged, current, count):
        if averaged[0].is_floating_point() or decay is not None:
            return floating(averaged, current, count)
        for mine, its in zip(averaged, current, strict=True):
            mine.copy_(get_swa_avg_fn()(mine, its, count))

    theirs = AveragedModel(models[0], multi_avg_fn=torchs, use_buffers=use_buffers)
    for model in models:
        theirs.update_parameters(model)
    mine, its = ours.state_dict(), theirs.module.state_dict()
    curved = {name for _, names, _, declaration, _ in walk(ours) if declaration.manifold == PSI() for name in names}
    assert all(torch.equal(mine[key], its[key]) for key in mine.keys() - curved)
    assert not any(torch.equal(mine[key], its[key]) for key in curved)
    plain = [nn.Linear(3, 2).to(dtype=dtype, device=device) for _ in range(3)]
    its = AveragedModel(plain[0], multi_avg_fn=floating)
    for model in plain:
        its.update_parameters(model)
    assert torch.equal(averaged_of(plain, decay).weight, its.module.weight)


def test_a_long_late_row_decides_raw_averages_and_no_others(device):
    """Why torch's own average is wrong on PSI: representatives that compute the same, and other averages."""
    points = Holder(PSI(), torch.randn(5, 8, dtype=torch.float64, device=device))
    models = [moved(points, ahead) for _ in range(4)]
    late = [*models[:-1], moved(models[-1], lambda m, x: 1e3 * x)]

    def raw(models):
        result = AveragedModel(models[0])
        for model in models:
            result.update_parameters(model)
        return result.module.w.detach()

    dist = PSI().dist
    last = models[-1].w.detach()
    assert dist(raw(late), last).max() < 0.01, "the late row decides"
    assert dist(raw(models), last).min() > 0.05
    ours, also = averaged_of(models).w.detach(), averaged_of(late).w.detach()
    assert dist(ours, also).max() <= 1e-12
    mean = sum(PSI().canonical(model.w.detach()) for model in models)
    for model in models:
        assert (dist(ours, mean) < 0.2 * dist(ours, model.w.detach())).all(), "close to the mean of unit rows"


@pytest.mark.parametrize("decay", DECAYS)
def test_averages_go_on_from_a_checkpoint(decay, device):
    """Nothing is remembered but what AveragedModel's state_dict holds."""
    models = [zoo(Sphere(), device=device)]
    for _ in range(5):
        models.append(onward(models[-1]))
    whole = AveragedModel(models[0], multi_avg_fn=get_multi_avg_fn(models[0], decay))
    for model in models[:3]:
        whole.update_parameters(model)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    resumed = AveragedModel(models[5], multi_avg_fn=get_multi_avg_fn(models[5], decay))
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for model in models[3:]:
        whole.update_parameters(model)
        resumed.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_copies_on_a_device_of_their_own(device):
    """A model in parts on several devices hands its parameters over device by device; its copy may lie on one."""
    models = [zoo(PSI(), device=device)]
    models.append(onward(models[0]))
    on_cpu = AveragedModel(models[0], device=torch.device("cpu"), multi_avg_fn=get_multi_avg_fn(models[0]))
    for model in models:
        on_cpu.update_parameters(model)
    for mine, its in zip(on_cpu.module.parameters(), averaged_of(models).parameters(), strict=True):
        assert torch.allclose(mine, its.cpu(), rtol=1e-12, atol=1e-14)
    spread = nn.ModuleList([zoo(PSI(), device="meta"), models[0]])
    mine, its = ([p.detach().clone() for p in model.parameters()] for model in models)
    get_multi_avg_fn(spread)(mine, its, 1)
    assert all(torch.equal(a, b) for a, b in zip(mine, averaged_of(models).parameters(), strict=True))


def test_geoopts_parameters_are_averaged_where_they_live(device):
    models = []
    for _ in range(3):
        model = nn.Linear(4, 3, device=device)
        points = Sphere().random_point(3, 4, device=device)
        model.weight = geoopt.ManifoldParameter(points, manifold=geoopt.Sphere())
        models.append(model)
    result = averaged_of(models)
    Sphere().check_point(result.weight.detach())
    assert (Sphere().dist(result.weight, models[2].weight) > 0.05).all()


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan"), "often", torch.ones(2)], ids=str)
def test_decay_is_checked(decay):
    with pytest.raises(
        OptionError, match=r"decay=.* is outside \[0, 1\]|is not a number|decay as a tensor needs one element"
    ):
        get_multi_avg_fn(nn.Linear(2, 2), decay)


def test_decay_at_its_ends(device):
    """Keeping everything, or nothing but the representative."""
    first = Holder(PSI(), torch.randn(3, 4, dtype=torch.float64, device=device))
    second = moved(first, lambda m, x: 5 * ahead(m, x))
    assert torch.equal(averaged_of([first, second], 1.0).w, first.w)
    mean = averaged_of([first, second], 0.0).w
    assert torch.allclose(mean, PSI().align(first.w, second.w), rtol=1e-12)


def test_what_cannot_be_averaged_says_so(device):
    model = zoo(PSI(), device=device)
    other = AveragedModel(nn.Linear(2, 2, device=device), multi_avg_fn=get_multi_avg_fn(model))
    other.update_parameters(nn.Linear(2, 2, device=device))
    with pytest.raises(OptionError, match=r"averages 2 tensors of torch.float32 on .* not the parameters of the model"):
        other.update_parameters(nn.Linear(2, 2, device=device))
    mixed = nn.Linear(3, 2, device=device)
    declare(mixed, "weight", PSI(), joined=("bias",))
    mixed.bias.data = mixed.bias.data.double()
    with pytest.raises(OptionError, match="the parts of weight differ in dtype or device"):
        averaged_of([mixed, mixed])
    nn.utils.parametrizations.weight_norm(model["blocks"])
    with pytest.raises(DeclarationError, match=r"blocks.weight is computed by a parametrization, .* or remove it"):
        get_multi_avg_fn(model)


@pytest.mark.parametrize(("manifold", "statistics"), [(PSI(), "psi.recalibrate"), (Sphere(), "update_bn")], ids=repr)
def test_training_ends_with_an_average(manifold, statistics, device):
    """At a high rate and with noisy labels the average computes better in eval mode than the networks it is made of."""
    net = declare_all(normed_cnn(device=device, eps=1e-5), manifold)
    teacher = normed_cnn(seed=1, device=device)
    optimizer = PSISGD(param_groups(net), lr=0.1, momentum=0.9, radius="free")
    schedule = SWALR(optimizer, swa_lr=0.2, anneal_epochs=2)
    inputs = [x for x, _ in batches(12, 32, 1, 6, 6, device=device)]
    right = [teacher(x).argmax(1) for x in inputs]
    noisy = [torch.where(torch.rand(y.shape, device=device) < 0.8, y, torch.randint_like(y, 3)) for y in right]
    result = AveragedModel(net, multi_avg_fn=get_multi_avg_fn(net))

    def loss(model):
        if statistics == "update_bn":
            update_bn(inputs, model)
        else:
            psi.recalibrate(model, inputs)
        model.eval()
        with torch.no_grad():
            return float(sum(nn.functional.cross_entropy(model(x), y) for x, y in zip(inputs, right, strict=True)))

    single = []
    for epoch in range(8):
        train(net, optimizer, zip(inputs, noisy, strict=True))
        schedule.step()
        if epoch >= 3:
            result.update_parameters(net)
            single.append(loss(copy.deepcopy(net)))
    for name in invariant_names(net):
        manifold.check_point(result.module.get_parameter(name).detach().flatten(1))
    assert loss(result) < min(single)
