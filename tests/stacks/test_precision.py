"""Mixed and low precision: autocast, loss scaling, weights in half precision, float64."""

import copy

import pytest
import torch
from networks import batches, declare_all, normed_cnn
from optimizers import OPTIMIZERS
from paths import PATHS
from retract import declare, param_groups, project_
from retract.manifolds import PSI, Grassmann, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD, clip_riemannian_norm_, get_multi_avg_fn
from torch import nn

HALF = [torch.bfloat16, torch.float16]
HOME = {"sgdg": Grassmann(1), "adamg": Grassmann(1), "sgd": Sphere()}
"""The manifold of an optimizer of `OPTIMIZERS`, PSI for the others."""


def network(name, dtype=torch.float32, device="cpu"):
    """On the manifold of optimizer `name`, with weights in `dtype` and norms in float32 or better."""
    net = declare_all(normed_cnn(eps=1e-5, dtype=torch.float32, device=device), HOME.get(name, PSI())).to(dtype)
    for module in net:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.to(torch.promote_types(dtype, torch.float32))
    return net


def loss_of(net, batch, autocast=None):
    x, y = batch
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        return nn.functional.cross_entropy(net(x.to(net[0].weight.dtype)).float(), y)


def run(net, optimizer, data, autocast=None):
    """Losses of one pass over `data`."""
    losses = []
    for batch in data:
        optimizer.zero_grad()
        loss = loss_of(net, batch, autocast)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def data(device, epochs=15):
    return list(batches(4, 32, 1, 6, 6, dtype=torch.float32, device=device)) * epochs


def check_geometry(net, manifold, tolerance):
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert manifold.point_defect(module.weight.detach().double().flatten(1)).max() <= tolerance


@pytest.mark.parametrize("kind", ["autocast", "weights"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bfloat16_trains_as_float32_does(name, kind, device):
    """Under autocast, and with the weights themselves in bfloat16: the loss falls by 95 % of what it does in float32, or
    more, and points lie on their manifold as well as their dtype can say.

    For seven epochs: later, near the end of learning, a last bit decides where either run is.
    """
    full, low = network(name, device=device), network(name, torch.bfloat16 if kind == "weights" else torch.float32)
    its_data = data(device, epochs=7)
    expected = run(full, OPTIMIZERS[name](param_groups(full)), its_data)
    losses = run(
        low.to(device), OPTIMIZERS[name](param_groups(low)), its_data, torch.bfloat16 if kind == "autocast" else None
    )
    fall, expected_fall = (sum(each[:4]) - sum(each[-4:]) for each in (losses, expected))
    assert expected_fall > 1
    assert fall >= 0.95 * expected_fall
    check_geometry(low, HOME.get(name, PSI()), 2e-6 if kind == "autocast" else 2**-8 + 2e-6)


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1), Grassmann(2), Stiefel()], ids=repr)
def test_autocast_does_not_reach_the_geometry(manifold, device):
    """Whoever steps, declares, clips or averages inside of autocast gets the bits of outside."""
    vectors = manifold.event_ndim == 1
    makes = [
        lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9, orthogonality=0.1 if vectors else 0.0),
        lambda p: RiemannianAdam(p, lr=0.1, motion="exp", transport="project"),
    ]
    for make in makes:
        ends = []
        for inside in (False, True):
            torch.manual_seed(0)
            layer = nn.Linear(2 if manifold.event_ndim == 2 else 6, 8, bias=False, device=device)
            grads = torch.randn(5, *layer.weight.shape, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=inside):
                declare(layer, "weight", manifold)
                optimizer = make(param_groups(layer))
                mean = copy.deepcopy(layer)
                for count, grad in enumerate(grads):
                    layer.weight.grad = grad.clone()
                    clip_riemannian_norm_(optimizer, 3.0)
                    optimizer.step()
                    get_multi_avg_fn(layer)(list(mean.parameters()), list(layer.parameters()), count + 1)
                project_(layer)
            ends.append([layer.weight.detach(), mean.weight.detach(), layer.weight.grad])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def everything(net, optimizer):
    """Copies of parameters, buffers and state."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*net.parameters(), *net.buffers(), *states)]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_skips_changes_nothing(name, path, device):
    """float16 under GradScaler: a run with an infinite gradient in it is the run without that batch, bitwise."""
    ends = []
    for overflows in ((), (0, 5)):
        net = network(name, device=device)
        optimizer = OPTIMIZERS[name]([{**group, **path} for group in param_groups(net)])
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
        for count, batch in enumerate(data(device, 3)):
            if count in overflows:
                before = everything(net, optimizer)
                for p in net.parameters():
                    p.grad = torch.ones_like(p)
                net[3].weight.grad[0, 0, 0, 0] = torch.inf
                scaler.scale(torch.ones((), device=device))
                scaler.step(optimizer)
                scaler.update(new_scale=2.0**8)
                assert equal(everything(net, optimizer), before)
            optimizer.zero_grad()
            scaler.scale(loss_of(net, batch, torch.float16)).backward()
            scaler.unscale_(optimizer)
            clip_riemannian_norm_(optimizer, 1.0)
            scaler.step(optimizer)
            scaler.update()
        check_geometry(net, HOME.get(name, PSI()), 2e-6)
        ends.append(everything(net, optimizer))
    assert equal(*ends)


def test_the_scaler_finds_its_scale(device):
    """From a scale at which every gradient overflows: skipped steps halve it, and then training goes on."""
    net = network("psi-sgdm", device=device)
    optimizer = PSISGD(param_groups(net), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**40)
    losses, skipped = [], 0
    for batch in data(device):
        optimizer.zero_grad()
        loss = loss_of(net, batch, torch.float16)
        scaler.scale(loss).backward()
        before = net[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        skipped += torch.equal(net[0].weight, before)
    assert 5 < skipped < 40
    assert scaler.get_scale() == 2.0 ** (40 - skipped)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaling_leaves_no_trace(name, path, device):
    """Scales are powers of two: without overflow, a scaler changes no bit of a run that is clipped in the metric."""
    ends = []
    for enabled in (False, True):
        net = network(name, device=device)
        optimizer = OPTIMIZERS[name]([{**group, **PATHS[path]} for group in param_groups(net)])
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=1, enabled=enabled)
        for batch in data(device, 1)[:3]:
            optimizer.zero_grad()
            scaler.scale(loss_of(net, batch)).backward()
            scaler.unscale_(optimizer)
            clip_riemannian_norm_(optimizer, 0.5)
            scaler.step(optimizer)
            scaler.update()
        ends.append(everything(net, optimizer))
    assert equal(*ends)


def alone(name, path, dtype, device):
    """A point on a manifold and a flat parameter without a network, and an optimizer of them."""
    torch.manual_seed(0)
    params = [nn.Parameter(Sphere().random_point(4, 40, device=device).to(dtype)) for _ in range(2)]
    groups = [{"params": params[:1], "manifold": HOME.get(name, PSI())}, {"params": params[1:], "orthogonality": 0.0}]
    return params, OPTIMIZERS[name]([{**group, **path} for group in groups])


def step(params, optimizer):
    for p in params:
        p.grad = (torch.randn(p.shape, device=p.device, dtype=torch.float32) / 40).to(p.dtype)
    optimizer.step()


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_in_half_precision_rounds_once(name, dtype, path, device):
    """A step from the same weights, gradients and state in float32, rounded at the end, is the same step."""
    params, optimizer = alone(name, path, dtype, device)
    for _ in range(3):
        step(params, optimizer)
    wide, twin = alone(name, path, torch.float32, device)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, w in zip(params, wide, strict=True):
        w.data.copy_(p)
    step(params, optimizer)
    for p, w in zip(params, wide, strict=True):
        w.grad = p.grad.float()
    twin.step()
    p, w = params[0], wide[0]
    assert torch.equal(p, w.to(dtype))
    for key, value in optimizer.state[p].items():
        assert value.dtype == (dtype if value.shape == p.shape else torch.float32), key
        assert torch.equal(value, twin.state[w][key].to(value.dtype)), key


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_default_dtype_is_no_part_of_a_step(name, path, device):
    """float32 and float64 weights, whichever of the two is torch's default: the same bits, and state in their dtype."""
    for dtype in (torch.float32, torch.float64):
        ends = []
        for default in (torch.float32, torch.float64):
            params, optimizer = alone(name, PATHS[path], dtype, device)
            torch.set_default_dtype(default)
            try:
                for _ in range(3):
                    step(params, optimizer)
            finally:
                torch.set_default_dtype(torch.float32)
            ends.append(everything(nn.ParameterList(params), optimizer))
            for state in optimizer.state.values():
                assert {value.dtype for key, value in state.items() if key != "step"} == {dtype}
        assert equal(*ends)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_narrower_than_their_weights(name, path, device):
    """`grad_dtype`: bfloat16 gradients of float32 weights are taken as the numbers that they are."""
    ends = []
    for narrow in (False, True):
        params, optimizer = alone(name, PATHS[path], torch.float32, device)
        for _ in range(3):
            for p in params:
                grad = torch.randn(p.shape, device=device).bfloat16()
                if narrow:
                    p.grad_dtype = torch.bfloat16
                p.grad = grad if narrow else grad.float()
            optimizer.step()
        ends.append(params)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*ends, strict=True))


LONG = {
    "psi-sgdm": (lambda p: PSISGD(p, lr=0.1, momentum=0.9), PSI()),
    "psi-sgdm-slow": (lambda p: PSISGD(p, lr=1e-4, momentum=0.9), PSI()),
    "psi-adam": (lambda p: RiemannianAdam(p, lr=1e-3), PSI()),
    "sphere": (lambda p: RiemannianSGD(p, lr=0.01, momentum=0.9), Sphere()),
    "sphere-slow": (lambda p: RiemannianSGD(p, lr=1e-5, momentum=0.9), Sphere()),
    "sgdg": (lambda p: SGDG(p, lr=0.01), Grassmann(1)),
    "adamg": (lambda p: AdamG(p, lr=1e-3), Grassmann(1)),
    "stiefel": (lambda p: RiemannianSGD(p, lr=0.01, momentum=0.9), Stiefel()),
}


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_norms_do_not_drift(steps, name, dtype, device):
    """However long a run, its points are off by what rounding them once to `dtype` costs, and no more.

    Rounding a vector to a significand of p bits changes its norm by at most the share 2^−p, ½ ε; float32 and float64 are
    not rounded again, and come out of a sum of n products, (8 + √n) ε (`numerics.settle`). Where rows hold a norm r, the
    step itself makes it r √(1 + θ²), θ the length of the step, and the next one takes that back: the last step here
    is a tiny one.
    """
    make, manifold = LONG[name]
    half, eps = dtype in HALF, torch.finfo(dtype).eps
    shape = (8, 16, 2) if manifold.event_ndim == 2 else (8, 32)
    w = nn.Parameter(manifold.random_point(*shape, device=device).to(dtype))
    held = w.detach().double().norm(dim=-1, keepdim=True) if manifold == PSI() else 1.0
    optimizer = make([{"params": [w], "manifold": manifold}])
    for step in range(steps + 1):
        x = w.detach().to(torch.promote_types(dtype, torch.float32))
        w.grad = (manifold.project(x, torch.randn_like(x)) / held**2).to(dtype)
        if step == steps:
            optimizer.param_groups[0].update(
                lr=1e-12, **({"momentum": 0.0} if "momentum" in optimizer.defaults else {})
            )
        optimizer.step()
    # A frame of p columns, each off by ½ ε, is off by twice that times √p.
    rounding = (2 * shape[-1] ** 0.5 if manifold == Stiefel() else 1.0) * 0.5 * eps if half else 0.0
    bound = rounding + (8 + 32**0.5) * (2.0**-23 if half else eps)
    x = w.detach().double() / held
    off = Stiefel().point_defect(x) if manifold == Stiefel() else Sphere().point_defect(x)
    assert off.max() <= bound
    if optimizer.param_groups[0]["transport"] != "none":
        (vector,) = (v.double() for k, v in optimizer.state[w].items() if k in ("momentum_buffer", "exp_avg"))
        assert manifold.tangent_defect(w.detach().double(), vector).max() <= 4 * bound
