"""`psi.find` on pairs of factors, against labels derived by hand."""

import inspect

import pair_networks
import pair_networks_of_units
import pytest
import torch
from pair_networks import Network, entries
from retract import psi

NETWORKS = [
    function
    for module in (pair_networks, pair_networks_of_units)
    for function in vars(module).values()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and inspect.get_annotations(function).get("return") is Network
]


def points(shapes, group, degree, left, right, k):
    """A label, or a pair, as the set of its points: each the set of its columns, each the entries of both sides."""
    sides = [[(part.name, entries(part, shapes[part.name], k)) for part in side] for side in (left, right)]
    found = set()
    for point in range(sides[0][0][1].shape[0]):
        columns = []
        for c in range(k):
            both = [frozenset((n, e) for n, at in side for e in at[point, :, c].tolist()) for side in sides]
            columns.append(frozenset(both) if degree == 1 else tuple(both))
        found.add((group, degree, frozenset(columns)))
    return found


def of_report(report):
    shapes = {f.name: f.shape for f in report}
    return [points(shapes, p.group, p.degree, p.factors.left, p.factors.right, p.k) for p in report.pairs]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_labels(network, seed):
    """Every pair, every point of it, and no other."""
    torch.manual_seed(seed)
    model, inputs, labels = network()
    report = psi.find(model, inputs)
    shapes = {f.name: f.shape for f in report}
    found = of_report(report)
    assert set().union(*found) == set().union(*(points(shapes, *label) for label in labels)), f"\n{report}"
    assert sum(map(len, found)) == len(set().union(*found)), "no point twice"
    for pair in report.pairs:
        assert pair.residual < 1e-9
        assert pair.points > 0
        assert pair.reason
