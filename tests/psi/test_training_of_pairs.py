"""Theorem 1 of Yi (2022) for pairs: networks with equivalent factors train alike on `FixedRank`, and differently in flat space."""

import copy

import pair_networks
import pair_networks_of_units
import pytest
import retract
import torch
from retract.manifolds import Factors, FixedRank
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.factors import disjoint
from retract.manifolds.parameters.rows import gather, scatter_
from retract.optim import RiemannianAdam, RiemannianSGD

STEPS = 100
NETWORKS = {
    "MLP": pair_networks_of_units.relu,
    "MLP of ReLU²": pair_networks_of_units.squared_relu,
    "SwiGLU": pair_networks_of_units.swiglu,
    "attention": pair_networks.attention_with_biases,
    "grouped queries": pair_networks.grouped_queries,
    "rotary attention": pair_networks.rotary,
    "fused attention": pair_networks.sections,
    "stacked experts": pair_networks_of_units.stacked_experts,
    "adapter": pair_networks_of_units.lora,
    "convolution and BatchNorm": pair_networks_of_units.conv_bn_relu_conv,
}
MAKES = {
    "SGD": lambda groups: RiemannianSGD(groups, lr=0.02),
    "momentum, carried unchanged": lambda groups: RiemannianSGD(groups, lr=0.005, momentum=0.9, transport="none"),
    "momentum, projected": lambda groups: RiemannianSGD(groups, lr=0.005, momentum=0.9, transport="project"),
    "Adam": lambda groups: RiemannianAdam(groups, lr=1e-3),
}


def declared(make):
    """A network with its pairs declared, each entry in one, inputs and targets in float64."""
    torch.manual_seed(0)
    model, args, labels = make()
    model, args = model.double(), [a.double() for a in args]
    for p in model.parameters():
        if not p.any():  # a fresh adapter is no point
            torch.nn.init.normal_(p)
    taken = {}
    for _, degree, left, right, k in labels:
        wider = dict(taken)
        for part in (*left, *right):
            wider[part.name] = (*wider.get(part.name, ()), part.resolved(model.get_parameter(part.name).shape, k))
        if all(disjoint(parts, tuple(model.get_parameter(name).shape)) for name, parts in wider.items()):
            retract.declare(model, Factors(left, right), FixedRank(k, degree=degree))
            taken = wider
    assert taken
    return model, args, torch.randn_like(model(*args))


@torch.no_grad()
def transformed(model):
    """A copy of `model` in which group elements of condition 1e4 have acted on all points; signs are kept."""
    model = copy.deepcopy(model)
    for name, _, params, declaration, _ in walk(model):
        parts, layouts = declaration.arrays(name, params)
        x = gather(parts, layouts)
        count, k = x.shape[0], x.shape[2]
        sizes = 10.0 ** (4.0 * torch.rand(count, k, dtype=x.dtype) - 2.0)
        sizes[:, 0], sizes[:, -1] = (100.0, 0.01) if k > 1 else (sizes[:, 0], sizes[:, -1])
        left, right = (torch.linalg.qr(torch.randn(count, k, k, dtype=x.dtype))[0] for _ in range(2))
        g = left @ (sizes.unsqueeze(-1) * right) if k > 1 else sizes.unsqueeze(-1)
        scatter_(declaration.manifold.act(g, x), parts, layouts)
    return model


def curve(model, optimizer, args, target):
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(*args) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_equivalent_networks_stay_equivalent(network, make):
    model, args, target = declared(network)
    twin, start = transformed(model), copy.deepcopy(model)
    curves = [curve(each, make(retract.param_groups(each)), args, target) for each in (model, twin)]
    assert (curves[0] - curves[1]).abs().max() <= 1e-10
    assert curves[0][-1] < curves[0][0]
    for _, names, params, _, _ in walk(model):
        assert all(not torch.equal(p, start.get_parameter(name)) for name, p in zip(names, params, strict=True))


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.02), lambda p: torch.optim.AdamW(p, lr=1e-2)], ids=["SGD", "AdamW"]
)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_in_flat_space_they_do_not(network, make):
    model, args, target = declared(network)
    curves = [curve(each, make(each.parameters()), args, target) for each in (model, transformed(model))]
    gap = (curves[0] - curves[1]).abs().max()
    assert gap > 1e-2 or not gap.isfinite()
