"""SGDP and AdamP: against their algorithms written out coordinate by coordinate, and against timm's where that loads."""

import importlib

import pytest
import torch
from experiments.baselines import SGDP, AdamP
from torch import nn

SHAPES = [(6, 3, 3, 3), (4, 10), (5,)]
OPTIONS = {
    "SGDP": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "SGDP, Nesterov": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "SGDP, no momentum": (SGDP, {"lr": 0.05, "momentum": 0.0}),
    "AdamP": (AdamP, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
}


def gradients(w, turn, kind):
    """Random; orthogonal to every row; orthogonal to the whole tensor only."""
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(turn), dtype=w.dtype)
    if kind == "rows" and w.ndim > 1:
        rows, flat = w.flatten(1), noise.flatten(1)
        return (flat - rows * (rows * flat).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)).view_as(w)
    if kind == "whole":
        return noise - w * (w * noise).sum() / w.square().sum()
    return noise


def by_hand(name, w, g, state, options):
    """One step of Heo et al.'s Algorithms 2 and 3 on one tensor, in plain Python."""
    lr, decay = options["lr"], options.get("weight_decay", 0.0)
    if name.startswith("SGDP"):
        state["p"] = options["momentum"] * state.get("p", torch.zeros_like(w)) + g
        ahead = g + options["momentum"] * state["p"]
        p, decay = ahead if "nesterov" in options else state["p"], decay / (1 - options["momentum"])
    else:
        b1, b2 = options["betas"]
        t = state["t"] = state.get("t", 0) + 1
        state["m"] = b1 * state.get("m", torch.zeros_like(w)) + (1 - b1) * g
        state["v"] = b2 * state.get("v", torch.zeros_like(w)) + (1 - b2) * g * g
        p = state["m"] / (1 - b1**t) / ((state["v"] / (1 - b2**t)).sqrt() + 1e-8)
    if w.ndim > 1:
        for parts in ([w[i] for i in range(len(w))], [w]):
            of_g, of_p = (
                ([g[i] for i in range(len(w))], [p[i] for i in range(len(w))]) if len(parts) > 1 else ([g], [p])
            )
            cosines = [abs((a * b).sum()) / (a.norm() * b.norm()) for a, b in zip(parts, of_g, strict=True)]
            if max(cosines) < 0.1 / parts[0].numel() ** 0.5:
                ways = [q - (q * a).sum() / (a * a).sum() * a for a, q in zip(parts, of_p, strict=True)]
                p = torch.stack(ways) if len(parts) > 1 else ways[0]
                decay *= 0.1
                break
    return (1 - lr * decay) * w - lr * p


@pytest.mark.parametrize("kind", ["random", "rows", "whole"])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_the_algorithm(name, kind):
    make, options = OPTIONS[name]
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]
    if name == "AdamP":
        parameters[0].data = parameters[0].data.to(memory_format=torch.channels_last)
    expected, states = [p.detach().clone() for p in parameters], [{} for _ in SHAPES]
    optimizer = make(parameters, **options)
    for turn in range(5):
        for i, (p, state) in enumerate(zip(parameters, states, strict=True)):
            p.grad = gradients(p.detach(), turn + i, kind)
            expected[i] = by_hand(name, expected[i], p.grad, state, options)
        before = [p.grad.clone() for p in parameters]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-7, atol=1e-8)  # they add 1e-8 to norms


# timm projects the buffer of SGDP without Nesterov's momentum
@pytest.mark.parametrize("name", ["SGDP, no momentum", "SGDP, Nesterov", "AdamP"])
def test_against_timm(name):
    try:
        theirs = getattr(importlib.import_module("timm.optim"), name.partition(",")[0])
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm does not load: {error}")
    make, options = OPTIONS[name]
    ours, other = ([nn.Parameter(torch.ones(s).cumsum(0).sin()) for s in SHAPES] for _ in range(2))
    optimizers = make(ours, **options), theirs(other, **options)
    for turn in range(6):
        for p, q in zip(ours, other, strict=True):
            p.grad = gradients(p.detach(), turn, ("random", "rows", "whole")[turn % 3])
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
