"""Pairs that were found, declared: which ones, with what else, and that training on them does not see the representative."""

import copy

import pytest
import retract
import torch
from retract import psi
from retract.errors import GeometryError
from retract.manifolds import PSI, FixedRank, Sphere
from retract.optim import RiemannianAdam, RiemannianSGD
from slices import PAIRS, act_at_random, network
from torch import nn

X = torch.randn(5, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def geometries(model):
    return {name: declaration.manifold for name, declaration in retract.declared(model).items()}


def test_the_pairs_of_attention_and_a_hidden_layer():
    model = network()
    report = psi.declare(model, X, pairs=True)
    assert sorted((d.k, d.n) for d in geometries(model).values()) == [(1, 8), (4, 8), (4, 9)]
    (left,) = [pair for pair in report.pairs if pair not in report.declared_pairs]
    assert (left.k, left.names) == (8, ("1.weight", "0.out.weight", "0.out.bias"))  # nothing between two layers
    assert "some of its entries belong to other points" in left.reason
    assert {name for pair in report.declared_pairs for name in pair.names} == {
        name for factors in PAIRS for name in factors.names
    }
    assert geometries(network()) == {}
    plain = network()
    assert psi.declare(plain, X).declared_pairs == ()
    assert geometries(plain) == {}


def test_called_again_it_declares_what_it_finds_then():
    model = network()
    psi.declare(model, X, pairs=True)
    first = geometries(model)
    psi.declare(model, X, pairs=True, damping=0.01)
    assert geometries(model) == {name: FixedRank(d.k, d.n, damping=0.01) for name, d in first.items()}
    psi.declare(model, X)
    assert geometries(model) == {}
    retract.declare(model, "1.weight", Sphere())
    report = psi.declare(model, X, pairs=True)
    assert geometries(model)["1.weight"] == Sphere()
    left = [pair for pair in report.pairs if pair not in report.declared_pairs]
    assert len(left) == 2
    assert all("1.weight belongs to the points of 1.weight" in pair.reason for pair in left)


class Normalized(nn.Module):
    """Rows in front of BatchNorm, whose weight and bias are a pair with the next convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        y = self.second(self.norm(self.first(x)).relu())
        return self.head(self.last(y).relu().mean((2, 3)))


def test_scale_invariant_rows_come_first():
    torch.manual_seed(0)
    model = Normalized()
    report = psi.declare(model, torch.randn(4, 3, 9, 9), pairs=True)
    assert geometries(model)["first.weight"] == geometries(model)["second.weight"] == PSI()
    reasons = {pair.names: pair.reason for pair in report.pairs if pair not in report.declared_pairs}
    (names,) = [names for names in reasons if "second.weight" in names]
    assert "norm.weight" in names
    assert "second.weight belongs to the points of second.weight" in reasons[names]
    assert {"last.weight", "last.bias", "head.weight"} in [{*pair.names} for pair in report.declared_pairs]


def test_units_come_before_the_weights_of_the_norm_in_front_of_them():
    """Both would take the weight of the first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    report = psi.declare(model, torch.randn(9, 6), pairs=True)
    assert len(report.pairs) == 2
    (pair,) = report.declared_pairs
    assert {"1.weight", "1.bias", "3.weight"} == {*pair.names}
    assert "Declared on FixedRank: 1 of 2 pairs, with 8 points." in str(report)


def test_pairs_with_frozen_parameters_are_left():
    model = network()
    model[3].weight.requires_grad_(False)
    report = psi.declare(model, X, pairs=True)
    assert len(report.declared_pairs) == 2
    assert any("frozen: 3.weight" in pair.reason for pair in report.pairs)


def test_a_singular_factor_is_refused_and_nothing_is_declared():
    model = network()
    with torch.no_grad():
        model[0].out.weight[:, :4] = 0.0
    with pytest.raises(GeometryError, match=r"0\.out\.weight.* row 0 .*singular value 0"):
        psi.declare(model, X, pairs=True)
    assert geometries(model) == {}
    psi.declare(model, X, pairs=True, damping=0.01)
    assert len(geometries(model)) == 3


def test_balanced_factors_compute_the_same():
    model, before = network(), network()
    psi.declare(model, X, pairs=True, representative="balanced")
    assert torch.allclose(model(X), before(X), rtol=1e-12)
    assert torch.allclose(
        model[3].weight.norm(dim=0).square(), model[1].weight.square().sum(1) + model[1].bias.square()
    )


@pytest.mark.parametrize(
    "make",
    [lambda g: RiemannianSGD(g, lr=0.05, momentum=0.9, transport="project"), lambda g: RiemannianAdam(g, lr=0.003)],
)
def test_what_was_found_trains_alike_from_equivalent_weights(make):
    model = network()
    psi.declare(model, X, pairs=True)
    twin = act_at_random(copy.deepcopy(model), torch.Generator().manual_seed(2))
    outputs = []
    for each in (model, twin):
        optimizer = make(retract.param_groups(each))
        for _ in range(20):
            optimizer.zero_grad()
            each(X).square().mean().backward()
            optimizer.step()
        outputs.append(each(X).detach())
    assert torch.allclose(*outputs, rtol=1e-10)
