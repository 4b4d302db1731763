"""Theorem 1 of Yi (2022) for pairs: networks with equivalent factors train alike on `FixedRank`, and differently in flat space."""

import copy

import pair_networks
import pair_networks_of_units
import pytest
import retract
import torch
from equivalent import MAKES, curve, transformed
from retract.manifolds import Factors, FixedRank
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.factors import disjoint

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
