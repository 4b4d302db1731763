"""`psi.find` on scale-invariant slices of fused weights, against labels derived by hand."""

import inspect

import pytest
import slice_networks
import torch
from pair_networks import entries, of_report, points
from retract import psi
from slice_networks import Network

NETWORKS = [
    function
    for function in vars(slice_networks).values()
    if inspect.isfunction(function) and inspect.get_annotations(function).get("return") is Network
]


def points_of(shapes, parts):
    """The points of slices, each the set of its entries."""
    every = [(part.name, entries(part, shapes[part.name], None)) for part in parts]
    return {
        frozenset((name, entry) for name, at in every for entry in at[point].flatten().tolist())
        for point in range(every[0][1].shape[0])
    }


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_labels(network, seed):
    """Every point, and no other; and beside them every pair."""
    torch.manual_seed(seed)
    model, inputs, slices, labels = network()
    report = psi.find(model, inputs)
    shapes = {f.name: f.shape for f in report}
    found = [points_of(shapes, factors.parts) for f in report for factors in f.slices]
    assert set().union(*found) == set().union(*(points_of(shapes, parts) for parts in slices)), f"\n{report}"
    assert sum(map(len, found)) == len(set().union(*found)), "no point twice"
    assert set().union(*of_report(report)) == set().union(*(points(shapes, *label) for label in labels)), f"\n{report}"
    for f in report:
        assert (f.granularity == "slices") == bool(f.slices)
        if f.slices:
            assert f.radial_ratio < 1e-9
            assert f.eps_leak < 0.01
