"""The brute force that `psi.find` is held against tells wrong verdicts from right ones."""

from dataclasses import replace

import pytest
import torch
from brute_force import BruteForce, numbers, ways
from random_networks import Plan
from retract import psi
from retract.manifolds import Rows
from torch import nn
from twins import in_general_position, wide, widened, without_eps
from verdicts import Survey


def network(size=1.0, tail=nn.BatchNorm1d):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), tail(6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.mul_(size)
    return model


def kinds(model, x, **changes):
    """What the survey says of the finding on the first weight with `changes` made to what find should say: row."""
    finding = next(f for f in psi.find(network(), torch.randn(32, 5)) if f.name == "0.weight")
    assert finding.granularity == "row"
    survey = Survey()
    twin = BruteForce(in_general_position(widened(model_copy(model))), (wide(x),), context=without_eps)
    survey.add("network", Report([replace(finding, **changes)]), twin, BruteForce(model, (x,)))
    return dict(survey.kinds)


def model_copy(model):
    twin = network(tail=type(model[1]))
    twin.load_state_dict(model.state_dict())
    return twin


class Report(list):
    """As much of a report as a survey reads."""

    @property
    def invariant(self):
        return [finding for finding in self if finding.granularity != "none"]


WHOLE = {"granularity": "tensor", "rows": Rows.whole()}
NONE = {"granularity": "none", "rows": Rows()}


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        (network(), {}, {}),
        (network(), WHOLE, {"finer missed": 1}),
        (network(), {"rows": Rows(dim=1)}, {"wrong positive": 1}),
        (network(), NONE, {"missed": 1}),
        (network(), NONE | {"reason": "gradient is zero: cannot tell"}, {"cannot tell": 1}),
        (network(1e-3), {}, {"eps shows": 1}),
        (network(1e-3), NONE, {"hidden by an eps": 1}),
        (network(tail=nn.LayerNorm), {}, {"wrong positive": 1}),
        (network(tail=nn.LayerNorm), WHOLE, {}),
        (network(tail=nn.Identity), WHOLE, {"wrong positive": 1}),
        (network(tail=nn.Identity), NONE, {}),
    ],
)
def test_verdicts(model, changes, expected):
    torch.manual_seed(1)
    found = kinds(model, torch.randn(32, 5), **changes)
    assert found == expected


def test_points():
    assert numbers(Rows(), (2, 3)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert numbers(Rows(dim=1), (2, 3)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert numbers(Rows(blocks=2), (4, 1)).flatten().tolist() == [0, 0, 1, 1]
    assert numbers(Rows(dim=1, groups=2), (4, 2)).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert numbers(Rows(dim=(0, 2)), (2, 1, 2)).tolist() == [[[0, 1]], [[2, 3]]]


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (6, 1, 2, 2)])
def test_points_are_those_of_rows(shape):
    """Points numbered by hand are those that `Rows` makes, for every way to cut."""
    entries = torch.arange(torch.Size(shape).numel()).view(shape)
    for count, rows in ways(shape):
        layout = rows.layout(entries, 1)
        points = layout.split(entries)
        assert len(points) == count
        found = numbers(rows, shape).flatten()
        assert {frozenset(p.tolist()) for p in points} == {
            frozenset(torch.where(found == i)[0].tolist()) for i in range(count)
        }


def test_networks_are_the_same_twice():
    x, again = Plan(3).build().state_dict(), Plan(3).build().state_dict()
    assert all(torch.equal(x[key], again[key]) for key in x)
