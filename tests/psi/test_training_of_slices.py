"""Theorem 1 of Yi (2022) for slices of fused weights that were found: networks with rescaled slices train alike on PSI."""

import copy

import pytest
import retract
import slice_networks
import torch
from equivalent import MAKES, curve, transformed
from retract import psi
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.rows import gather

QUICK = [slice_networks.sections_with_biases, slice_networks.heads_inside, slice_networks.stacked_experts]
LONG = [
    slice_networks.sections,
    slice_networks.interleaved,
    slice_networks.grouped_sections,
    slice_networks.transposed,
    slice_networks.half_of_a_gate,
    slice_networks.some_heads,
    slice_networks.all_of_it,
    slice_networks.section_side_by_side,
]
NETWORKS = [*QUICK, *(pytest.param(network, marks=pytest.mark.long) for network in LONG)]


def declared(network):
    """A network without eps, with all that was found declared, inputs and targets in float64."""
    torch.manual_seed(0)
    model, args, _, _ = network()
    model, args = model.double(), [a.double() for a in args]
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 0.0
    report = psi.declare(model, args, pairs=True)
    assert any(f.slices for f in report)
    assert len(report.declared_pairs) == len(report.pairs)
    return model, args, torch.randn_like(model(*args))


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("network", NETWORKS, ids=[network.__name__ for network in QUICK + LONG])
def test_equivalent_networks_stay_equivalent(network, make):
    model, args, target = declared(network)
    twin, start = transformed(model), copy.deepcopy(model)
    curves = [curve(each, make(retract.param_groups(each)), args, target) for each in (model, twin)]
    assert (curves[0] - curves[1]).abs().max() <= 1e-10
    assert curves[0][-1] < curves[0][0]
    for now, before in zip(points(model), points(start), strict=True):
        assert (now != before).flatten(1).any(1).all(), "every point has moved"


def points(model):
    """Of every declaration."""
    return [gather(*declaration.arrays(name, params)) for name, _, params, declaration, _ in walk(model)]


@pytest.mark.parametrize("network", NETWORKS, ids=[network.__name__ for network in QUICK + LONG])
def test_in_flat_space_they_do_not(network):
    model, args, target = declared(network)
    curves = [
        curve(each, torch.optim.SGD(each.parameters(), lr=0.02), args, target) for each in (model, transformed(model))
    ]
    gap = (curves[0] - curves[1]).abs().max()
    assert gap > 1e-2 or not gap.isfinite()
