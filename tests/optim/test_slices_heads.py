"""Heads that are slices are stepped in place, in the digits of the reference."""

import pytest
import retract
import torch
from retract.manifolds import Factors, FixedRank, Part
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

N, M, K, HEADS = 16, 10, 3, 4
MAKES = {
    "momentum": lambda groups, **options: RiemannianSGD(groups, lr=0.1, **{"momentum": 0.9, **options}),
    "adam": lambda groups, **options: RiemannianAdam(groups, lr=0.1, **options),
}


def heads(dtype, condition=1.0, damping=0.0):
    """A layer with heads: columns of `out`, and rows of `value` with a bias, in two runs; two layers."""
    torch.manual_seed(0)
    model = nn.ModuleList()
    for _ in range(2):
        layer = nn.ParameterDict(
            {
                "out": torch.randn(N, 2 * HEADS * K, dtype=torch.float64),
                "value": torch.randn(5 + HEADS * K, M, dtype=torch.float64),
                "bias": torch.randn(HEADS * K, dtype=torch.float64),
            }
        )
        turns = torch.linalg.qr(torch.randn(2, K, K, dtype=torch.float64))[0]
        g = turns[0] @ torch.diag(torch.logspace(0, 1, K, condition, dtype=torch.float64)) @ turns[1]
        with torch.no_grad():
            out, value = layer["out"].view(N, 2, HEADS, K), layer["value"][5:].view(HEADS, K, M)
            out.copy_(out @ g)
            value.copy_(torch.linalg.solve(g, value))
            layer["bias"].copy_(torch.linalg.solve(g, layer["bias"].view(HEADS, K, 1)).flatten())
        # Every head has columns in both halves of `out`, whose distance is that of no matrix.
        left = (Part("out", 1, 0, ((HEADS, K),), K, ((2, HEADS * K),)),)
        right = (Part("value", 0, 5), Part("bias"))
        retract.declare(layer.to(dtype), Factors(left, right), FixedRank(K, damping=damping))
        model.append(layer)
    return model


def factors(layer):
    """B and A of all heads."""
    out, value = layer["out"].view(N, 2, HEADS, K).permute(2, 1, 0, 3).reshape(HEADS, 2 * N, K), layer["value"][5:]
    return out, torch.cat([value.view(HEADS, K, M), layer["bias"].view(HEADS, K, 1)], 2)


def steps(model, optimizer, number=4, size=1.0):
    """Steps on a function of the products."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        loss = 0.0
        for layer in model:
            b, a = factors(layer)
            b, a = b.double(), a.double()
            direction = torch.randn(HEADS, 2 * N, M + 1, dtype=torch.float64, generator=generator)
            loss = loss + size * (direction * (b @ a)).sum() + layer["value"][:5].double().square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("well", [True, False], ids=["well conditioned", "ill conditioned"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_heads_in_place_are_the_reference(make, well, dtype):
    condition = 1.0 if well else 1e3 if dtype == torch.float64 else 50.0
    ours, theirs = heads(dtype, condition), heads(dtype, condition)
    optimizers = make(retract.param_groups(ours)), make(retract.param_groups(theirs), foreach=False)
    reasons = [{path.reason for path in each.paths() if path.geometry.startswith("FixedRank")} for each in optimizers]
    assert reasons[0] == {"in place"} != reasons[1]
    found, exact = (steps(model, each) for model, each in zip((ours, theirs), optimizers, strict=True))
    bound = (1e-12 if dtype == torch.float64 else 2e-5) * condition
    for name, value in exact.items():
        assert torch.allclose(found[name], value, rtol=bound, atol=bound * float(value.abs().max())), name
        state, other = (each.state[m.get_parameter(name)] for each, m in zip(optimizers, (ours, theirs), strict=True))
        assert state.keys() == other.keys()
        for key, number in other.items():
            assert torch.allclose(state[key], number, rtol=bound, atol=bound * float(number.abs().max())), (name, key)


@pytest.mark.parametrize(
    "options",
    [{"max_point_norm": 0.05}, {"maximize": True}, {"transport": "none"}, {"nesterov": True}, {"momentum": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_options_of_heads(damping, options):
    for make in MAKES.values():
        if make is MAKES["adam"] and not {"nesterov", "momentum"}.isdisjoint(options):
            continue
        models = [heads(torch.float64, damping=damping) for _ in range(2)]
        runs = (
            make(retract.param_groups(model), **path, **options)
            for model, path in zip(models, ({}, {"foreach": False}), strict=True)
        )
        found, exact = (steps(model, optimizer) for model, optimizer in zip(models, runs, strict=True))
        for name, value in exact.items():
            assert torch.allclose(found[name], value, rtol=1e-11, atol=1e-11), name


@pytest.mark.parametrize("size", [1e-22, 3e18])
def test_gradients_whose_squares_do_not_fit(size):
    models = [heads(torch.float32) for _ in range(2)]
    start = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    runs = (
        RiemannianAdam(retract.param_groups(model), lr=0.1, eps=0.0, max_point_norm=1e30, **path)
        for model, path in zip(models, ({}, {"foreach": False}), strict=True)
    )
    found, exact = (steps(model, optimizer, 1, size) for model, optimizer in zip(models, runs, strict=True))
    for name, value in exact.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-4), name
        assert not torch.equal(value, start[name])


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_ill_conditioned_heads_are_stepped_to_the_digits_of_their_factors(make):
    """Of condition 1e5, whose Grams have 1e10: products stay those of well conditioned factors to an error of the order of 1e5 ε."""
    products = []
    for condition in (1.0, 1e5):
        model = heads(torch.float64, condition)
        steps(model, make(retract.param_groups(model), transport="none"), 2)
        products.append(torch.stack([torch.matmul(*factors(layer)) for layer in model]))
    gap = (products[0] - products[1]).abs().max() / products[0].abs().max()
    assert gap < 1e-10


def test_a_head_is_stepped_alike_beside_others_of_any_condition():
    """Whether a layer is factored twice does not change the bits of another."""
    pairs = [heads(torch.float32, condition) for condition in (1.0, 1e4)]
    alone = heads(torch.float32)
    both = nn.ModuleList([pairs[0][0], pairs[1][1]])
    makes = [RiemannianAdam(retract.param_groups(model), lr=0.1) for model in (both, alone)]
    for model, optimizer in zip((both, alone), makes, strict=True):
        steps(model, optimizer)
    assert all(map(torch.equal, both[0].parameters(), alone[0].parameters()))
