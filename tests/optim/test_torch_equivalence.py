"""On Euclidean groups the Riemannian optimizers are torch's own."""

import itertools

import pytest
import torch
from retract.manifolds import Euclidean
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.optim.execution import dispatch as execute
from torch import nn

SGD_OPTIONS = [
    {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": decay, "maximize": maximize}
    for momentum, dampening, nesterov, decay, maximize in itertools.product(
        (0.0, 0.9), (0.0, 0.3), (False, True), (0.0, 0.01), (False, True)
    )
    if not (nesterov and (momentum == 0 or dampening != 0))
]
TORCH_PATHS = ({"foreach": False}, {"foreach": True}, {"fused": True})
ADAM_OPTIONS = [
    {"betas": betas, "eps": eps, "weight_decay": decay, "maximize": maximize}
    for betas, eps, decay, maximize in itertools.product(
        ((0.9, 0.999), (0.5, 0.7)), (1e-8, 1e-2), (0.0, 0.01), (False, True)
    )
]


def run(optimizer_class, device, steps=50, tensor_lr=False, dtype=torch.float64, geometry=None, **options):
    """Weights after `steps` of a bounded problem under a schedule with warmup and drop."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(device, dtype)
    x, y = torch.randn(16, 5, dtype=dtype).to(device), torch.randn(16, 2, dtype=dtype).to(device)
    lr = torch.tensor(0.05, dtype=dtype) if tensor_lr else 0.05
    params = list(model.parameters())
    optimizer = optimizer_class([{"params": params, **(geometry or {})}], lr=lr, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 5) * (0.1 if t > 30 else 1.0))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).tanh().square().mean().backward()
        grads = [p.grad.clone() for p in params]
        optimizer.step()
        if optimizer_class not in (torch.optim.SGD, torch.optim.Adam):  # torch's foreach Nesterov does write there
            assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True)), "p.grad was written to"
        schedule.step()
    return torch.cat([p.detach().flatten() for p in params])


def relative(a, b):
    return float(((a - b).abs() / b.abs().clamp(min=1e-3)).max())


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_sgd_is_torch_sgd_bitwise(options, device):
    """On each of torch's paths, and by default."""
    for path in (*TORCH_PATHS, {}):
        theirs = run(torch.optim.SGD, device, **(path or {"foreach": False}), **options)
        assert torch.equal(run(RiemannianSGD, device, **path, **options), theirs), path


@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=str)
def test_adam_is_torch_adam(options, device):
    for path in (*TORCH_PATHS, {}):
        theirs = run(torch.optim.Adam, device, **(path or {"foreach": False}), **options)
        geometry = {"manifold": Euclidean(0)} if "fused" in path else None
        assert torch.equal(run(RiemannianAdam, device, geometry=geometry, **path, **options), theirs), path


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_large_tensors_take_torchs_fused_path(options, device, monkeypatch):
    """By default, and agree with its plain one to rounding; so does our own reference."""
    monkeypatch.setattr(execute, "TINY", 0)
    plain = run(torch.optim.SGD, device, foreach=False, **options)
    assert relative(run(RiemannianSGD, device, **options), plain) <= 1e-12
    monkeypatch.setattr(execute, "torch_has", lambda *_: False)
    for path in ({"foreach": False}, {"foreach": True}):
        assert relative(run(RiemannianSGD, device, **path, **options), plain) <= 1e-12


@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=str)
def test_our_own_adam_is_torchs(options, device, monkeypatch):
    monkeypatch.setattr(execute, "torch_has", lambda *_: False)
    plain = run(torch.optim.Adam, device, foreach=False, **options)
    for path in ({"foreach": False}, {"foreach": True}):
        assert relative(run(RiemannianAdam, device, **path, **options), plain) <= 1e-12


def test_torch_by_default_mistakes_layouts_on_its_fused_path(device):
    """It takes memory orders for equal that are not; ours never hands it such tensors."""
    w, grad = (
        torch.randn(4, 3, 5, 5, device=device).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 5, 5, device=device),
    )
    for path in (*TORCH_PATHS, {}):
        p = nn.Parameter(w.clone())
        p.grad = grad.clone()
        RiemannianSGD([p], lr=0.1, momentum=0.9, **path).step()
        assert torch.allclose(p.detach(), w - 0.1 * grad)


def test_tensor_learning_rate(device):
    for ours, theirs in ((RiemannianSGD, torch.optim.SGD), (RiemannianAdam, torch.optim.Adam)):
        plain = run(theirs, device, foreach=False)
        assert relative(run(ours, device, tensor_lr=True), plain) <= 1e-12
        assert relative(run(ours, device, tensor_lr=True, capturable=True), plain) <= 1e-6


def test_velocity_form_agrees_at_constant_rate_only(device):
    def last(form, schedule):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, device=device))
        optimizer = RiemannianSGD([w], lr=0.1, momentum=0.9, dampening=0.2, momentum_form=form)
        for t in range(20):
            optimizer.param_groups[0]["lr"] = schedule(t)
            optimizer.zero_grad()
            (w.sin() ** 2).sum().backward()
            optimizer.step()
        return w.detach()

    assert relative(last("velocity", lambda t: 0.1), last("heavy_ball", lambda t: 0.1)) <= 1e-12
    drop = [0.1 if t < 10 else 0.01 for t in range(20)]
    assert relative(last("velocity", drop.__getitem__), last("heavy_ball", drop.__getitem__)) > 1e-3


def test_momentum_from_zero_mid_run_starts_like_torch(device):
    def last(optimizer_class):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, device=device))
        optimizer = optimizer_class([w], lr=0.1, dampening=0.5)
        for t in range(10):
            optimizer.param_groups[0]["momentum"] = 0.0 if t < 5 else 0.9
            optimizer.zero_grad()
            (w.sin() ** 2).sum().backward()
            optimizer.step()
        return w.detach()

    assert torch.equal(last(RiemannianSGD), last(torch.optim.SGD))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_computes_in_float32(dtype, device):
    """One step from the same state: the float32 update, rounded once."""
    w = torch.randn(6, 4, device=device).to(dtype)
    g = torch.randn(6, 4, device=device).to(dtype)
    half = nn.Parameter(w.clone())
    half.grad = g.clone()
    RiemannianSGD([half], lr=0.05, momentum=0.9).step()
    assert torch.equal(half.detach(), (w.float() - 0.05 * g.float()).to(dtype))
