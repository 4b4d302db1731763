"""Averages of models, SWA and EMA: every point counts by where it is, not by how it is stored."""

import copy

import geoopt
import pytest
import torch
from networks import batches, declare_all, normed_cnn, train
from retract import declare, param_groups, psi
from retract.manifolds import PSI, GeodesicManifold, Grassmann, QuotientManifold, Rows, Sphere, Stiefel, from_geoopt
from retract.manifolds.declare import walk
from retract.manifolds.errors import OptionError, StateError
from retract.manifolds.rows import gather, scatter_
from retract.optim import PSISGD, averaging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, update_bn

DECAYS = [None, 0.75]


def network(seed):
    """Every kind of point, between flat parameters and buffers, in two dtypes, which AveragedModel takes apart."""
    torch.manual_seed(seed)
    net = nn.ModuleDict(
        {
            "rows": nn.Linear(6, 5),
            "norm": nn.BatchNorm1d(5),
            "joint": nn.Linear(6, 5),
            "conv": nn.ConvTranspose2d(4, 3, 2, bias=False).to(memory_format=torch.channels_last),
            "whole": nn.Linear(6, 4, bias=False),
            "sphere": nn.Linear(6, 5),
            "lines": nn.Linear(6, 5),
            "planes": nn.Linear(2, 6),
            "frame": nn.Linear(3, 6),
            "ball": nn.Linear(3, 4),
        }
    )
    for name, layer in net.items():
        layer.to(torch.float32 if name in ("joint", "lines", "norm", "frame") else torch.float64)
    for name, manifold, options in (
        ("rows", PSI(), {}),
        ("joint", PSI(), {"joined": ("bias",)}),
        ("conv", PSI(), {"rows": Rows(axis=1)}),
        ("whole", PSI(), {"rows": Rows(blocks=1)}),
        ("sphere", Sphere(), {}),
        ("lines", Grassmann(1), {}),
        ("planes", Grassmann(2), {}),
        ("frame", Stiefel(), {}),
        ("ball", from_geoopt(geoopt.PoincareBall()), {}),
    ):
        declare(net, f"{name}.weight", manifold, **options)
    return net


def average(models, decay=None, **options):
    averaged = AveragedModel(models[0], multi_avg_fn=averaging(models[0], decay), **options)
    for model in models:
        averaged.update_parameters(model)
    return averaged.module


def points(model):
    """name → (manifold, points), for everything that is declared."""
    result = {}
    for names, parts, declaration in walk(model):
        layouts = [declaration.rows.layout(part, declaration.manifold.event_ndim) for part in parts]
        result[names[0]] = declaration.manifold, gather([part.detach() for part in parts], layouts)
    return result


@torch.no_grad()
def stored_otherwise(model):
    """A copy whose points on quotients have other representatives, factors of 1e-4 to 1e4 on PSI among them."""
    twin = copy.deepcopy(model)
    for _, parts, (manifold, rows) in [(n, p, (d.manifold, d.rows)) for n, p, d in walk(twin)]:
        if isinstance(manifold, QuotientManifold):
            layouts = [rows.layout(part, manifold.event_ndim) for part in parts]
            x = gather(parts, layouts).clone()
            scatter_(manifold.act(manifold.random_group_element(x), x), parts, layouts)
    return twin


def near(model, distance=0.3):
    """A copy with every parameter moved a little, and every point back on its manifold."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(torch.randn_like(p), alpha=distance * float(p.abs().mean()))
    for names, _, declaration in list(walk(twin)):
        declare(twin, names[0], declaration.manifold, declaration.rows, [n.split(".")[1] for n in names[1:]])
    return twin


@pytest.mark.parametrize("decay", DECAYS)
def test_the_average_lies_between(decay):
    """Of two models: on the manifold, at the share w of the way, with the norm of the first on PSI."""
    first = network(0)
    second = near(first)
    share = 0.5 if decay is None else 0.25
    ends = points(second)
    for name, (manifold, mean) in points(average([first, second], decay)).items():
        manifold.check_point(mean, name)
        x, y = points(first)[name][1], ends[name][1]
        tolerance = 1e-5 if x.dtype == torch.float32 else 1e-12
        if isinstance(manifold, GeodesicManifold):
            whole, way = manifold.dist(x, y), manifold.dist(x, mean)
            assert (whole > 0.05).all(), name
            assert torch.allclose(way, share * whole, rtol=0, atol=tolerance), name
            assert torch.allclose(way + manifold.dist(mean, y), whole, rtol=0, atol=tolerance), name
        else:
            assert torch.allclose(mean, manifold.nearest(x + share * (y - x)), rtol=0, atol=tolerance), name
        if isinstance(manifold, PSI):
            assert torch.allclose(manifold.radius(mean), manifold.radius(x), rtol=tolerance), name


@pytest.mark.parametrize("decay", DECAYS)
def test_how_points_are_stored_changes_nothing(decay):
    models = [network(0)]
    models += [near(models[0]) for _ in range(4)]
    plain = points(average(models, decay))
    for name, (manifold, mean) in points(average([stored_otherwise(model) for model in models], decay)).items():
        if isinstance(manifold, GeodesicManifold):
            tolerance = 1e-5 if mean.dtype == torch.float32 else 1e-12
            assert (manifold.dist(plain[name][1], mean) <= tolerance).all(), name
        else:
            assert torch.equal(plain[name][1], mean), name
    raw = AveragedModel(models[0])
    for model in map(stored_otherwise, models):
        raw.update_parameters(model)
    gap = {
        name: float(m.dist(plain[name][1], mean).max()) for name, (m, mean) in points(raw.module).items() if m == PSI()
    }
    assert min(gap.values()) > 0.05, "the control: torch's mean of the arrays does change"


def test_a_row_counts_once_however_long_it_is():
    """At right angles, lengths 1 and 1000: torch's mean is the second model, ours halves the angle."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    for model, x in ((first, [1.0, 0.0]), (second, [0.0, 1000.0])):
        declare(model, "weight", PSI())
        model.weight.data.copy_(torch.tensor([x, x]))
    raw = AveragedModel(first)
    raw.update_parameters(first)
    raw.update_parameters(second)
    weight = raw.module.weight.detach()
    assert (PSI().dist(weight, second.weight.detach()) < 2e-3).all()
    assert torch.allclose(average([first, second]).weight, torch.full((2, 2), 2**-0.5))


def test_close_models_average_to_the_mean_of_their_directions():
    """The inductive mean and the mean direction differ in third order of the spread."""
    first = network(0)
    gaps = []
    for spread in (0.1, 0.05):
        torch.manual_seed(1)
        models = [first, *(near(first, spread) for _ in range(9))]
        directions = [PSI().canonical(points(model)["rows.weight"][1]) for model in models]
        mean = points(average(models))["rows.weight"][1]
        gaps.append(float(PSI().dist(mean, sum(directions)).max()))
    assert gaps[0] < 1e-2
    assert gaps[1] < gaps[0] / 6


@pytest.mark.parametrize("use_buffers", [False, True], ids=["buffers copied", "buffers averaged"])
@pytest.mark.parametrize("decay", DECAYS)
def test_flat_parameters_and_buffers_are_torchs_bitwise(decay, use_buffers):
    models = [network(seed) for seed in range(4)]
    for model in models:
        model["norm"](torch.randn(8, 5))
    its = None if decay is None else get_ema_avg_fn(decay)
    theirs = AveragedModel(models[0], avg_fn=its, use_buffers=use_buffers)
    for model in models:
        theirs.update_parameters(model)
    ours = average(models, decay, use_buffers=use_buffers)
    taken = {name for names, _, _ in walk(ours) for name in names}
    expected = theirs.module.state_dict()
    flat = {name: value for name, value in ours.state_dict().items() if name not in taken}
    assert {"rows.bias", "norm.weight", "norm.running_var", "norm.num_batches_tracked"} <= set(flat)
    for name, value in flat.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("decay", DECAYS)
def test_equal_models_average_to_themselves(decay):
    model = network(0)
    mean = average([model] * 4, decay)
    for name, p in model.named_parameters():
        if name == "planes.weight":  # aligned by a polar decomposition, which rounds
            assert torch.allclose(mean.get_parameter(name), p, rtol=0, atol=1e-14)
        else:
            assert torch.equal(mean.get_parameter(name), p), name


@pytest.mark.parametrize("recalibrate", [update_bn, psi.recalibrate], ids=["update_bn", "recalibrate"])
def test_a_run_averages_alike_whatever_its_norms(recalibrate, device):
    """Two radii, one path in the quotient: the averages are one network, once its running statistics are its own."""
    data = list(batches(60, 16, 1, 6, 6, device=device))
    inputs = [x for x, _ in data[:5]]
    outputs = {}
    for radius in ("hold", "free"):
        for way in ("ours", "torch"):
            net = declare_all(normed_cnn(device=device), PSI())
            optimizer = PSISGD(param_groups(net), lr=0.5, radius=radius)
            averaged = AveragedModel(net, multi_avg_fn=averaging(net) if way == "ours" else None)
            train(net, optimizer, data, lambda step, net=net, averaged=averaged: averaged.update_parameters(net))
            recalibrate(inputs, averaged) if recalibrate is update_bn else recalibrate(averaged, inputs)
            outputs[radius, way] = averaged.eval()(data[0][0]).detach()
    assert torch.allclose(outputs["hold", "ours"], outputs["free", "ours"], rtol=0, atol=1e-9)
    assert (outputs["hold", "torch"] - outputs["free", "torch"]).abs().max() > 1e-3, "the control"


def test_a_model_on_two_devices():
    """AveragedModel hands over one group per device of its own, or all at once where it lives on one."""
    first, second = (nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]) for _ in range(2))
    declare(first, "0.weight", Sphere())
    declare(second, "0.weight", Sphere())
    spread = copy.deepcopy(first)
    spread[1].to("meta")
    one, all_of_it = copy.deepcopy(first), copy.deepcopy(first)
    averaging(spread)(list(one[0].parameters()), list(second[0].parameters()), 1)
    averaging(spread)(list(all_of_it.parameters()), list(second.parameters()), 1)
    expected = average([first, second])
    for a, b in ((one[0], expected[0]), (all_of_it, expected)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_what_is_refused():
    for decay in (-0.1, 1.5, float("nan")):
        with pytest.raises(OptionError, match=r"decay=.* is outside \[0, 1\]; None averages with equal weights"):
            averaging(nn.Linear(2, 2), decay)
    other = AveragedModel(nn.Linear(3, 2), multi_avg_fn=averaging(nn.Linear(2, 3)))
    other.update_parameters(nn.Linear(3, 2))
    with pytest.raises(StateError, match="these 2 tensors in torch.float32 on cpu are not the parameters of the model"):
        other.update_parameters(nn.Linear(3, 2))
    layer = nn.Linear(3, 2)
    declare(layer, "weight", PSI(), joined=("bias",))
    layer.bias.data = layer.bias.data.double()
    with pytest.raises(StateError, match="weight, bias form joint points, but differ in dtype or device"):
        average([layer, layer])
