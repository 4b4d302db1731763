"""`psi.declare`: again, with a bias that several weights share, and next to declarations made by hand."""

import copy

import pytest
import torch
from networks import normed_mlp
from retract import declare, declared, param_groups, psi, undeclare
from retract.errors import DeclarationError
from retract.manifolds import PSI, Declaration, Grassmann, Rows, Sphere
from retract.optim import PSISGD
from torch import nn


def blocks():
    return normed_mlp(0, 8, 6, 8, 1e-5, torch.float32)


class LowRank(nn.Module):
    """U V x + b: both factors scale with b, each on its own."""

    def __init__(self, outputs=12):
        super().__init__()
        self.V = nn.Parameter(torch.randn(3, 8))
        self.U = nn.Parameter(torch.randn(outputs, 3))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return nn.functional.linear(nn.functional.linear(x, self.V), self.U, self.bias)


def reasons(report):
    return {f.name: f.reason for f in report}


def test_what_is_no_longer_found_is_undeclared():
    net, x = blocks(), torch.randn(32, 6)
    assert psi.declare(net, x).declared == ("0.weight", "3.weight")
    weight = net[0].weight.detach().clone()
    net[1].eval()
    report = psi.declare(net, x)
    assert report.declared == ("3.weight",)
    assert list(declared(net)) == ["3.weight"]
    assert reasons(report)["0.weight"] == "BatchNorm is in eval mode; no longer declared"
    assert torch.equal(net[0].weight, weight)
    groups = param_groups(net)
    assert any(p is net[0].weight for p in groups[1]["params"])
    PSISGD(groups, lr=0.1)
    net[1].train()
    assert psi.declare(net, x, manifold=Grassmann(1)).declared == ("0.weight", "3.weight")
    assert {d.manifold for d in declared(net).values()} == {Grassmann(1)}


def test_what_was_declared_by_hand_stays():
    net, x = blocks(), torch.randn(32, 6)
    declare(net, "0.weight", Sphere())
    net[1].eval()
    psi.declare(net, x)
    assert declared(net) == {"0.weight": Declaration(Sphere()), "3.weight": Declaration(PSI())}
    psi.declare(net, x)
    assert set(declared(net)) == {"0.weight", "3.weight"}
    net[1].train()
    psi.declare(net, x)
    assert declared(net)["0.weight"] == Declaration(PSI())
    # Now it is psi.declare's.
    net[1].eval()
    psi.declare(copy.deepcopy(net), x)
    psi.declare(net, x)
    assert set(declared(net)) == {"3.weight"}


@pytest.mark.parametrize(
    "tail",
    [lambda: [nn.LayerNorm(12)], lambda: [nn.GroupNorm(3, 12)], lambda: [nn.ReLU(), nn.BatchNorm1d(12)]],
    ids=["layer", "group", "batch"],
)
def test_a_shared_bias_belongs_to_one_weight(tail):
    torch.manual_seed(0)
    net, x = nn.Sequential(LowRank(), *tail(), nn.Linear(12, 3)), torch.randn(32, 8)
    for _ in range(2):
        report = psi.declare(net, x)
        assert report.declared == ("0.V", "0.bias")  # the first in the model that needs it
        assert reasons(report)["0.U"] == "scales only with bias, which belongs to the points of 0.V"
        assert list(declared(net)) == ["0.V"]
        PSISGD(param_groups(net), lr=0.1)
    # A choice made by hand is kept.
    undeclare(net, "0.V")
    declare(net, "0.U", PSI(), Rows.whole(), joined=("bias",))
    report = psi.declare(net, x)
    assert report.declared == ()
    assert reasons(report)["0.V"].endswith("; not declared, 0.bias belongs to the points of 0.U")
    assert list(declared(net)) == ["0.U"]


def test_a_bias_that_other_points_hold_by_hand():
    torch.manual_seed(0)
    net, x = nn.Sequential(LowRank(), nn.LayerNorm(12)), torch.randn(32, 8)
    declare(net, "0.bias", Sphere(), Rows.whole())
    report = psi.declare(net, x)
    assert report.declared == ()
    assert reasons(report)["0.V"].endswith("; not declared, 0.bias belongs to the points of 0.bias")
    assert declared(net) == {"0.bias": Declaration(Sphere(), Rows.whole())}


def test_nothing_is_written_when_something_is_refused():
    net, x = blocks(), torch.randn(32, 6)
    psi.declare(net, x)
    for _ in range(3):
        net(x)
    net[1].eval()
    before, written = copy.deepcopy(net.state_dict()), declared(net)
    with pytest.raises(DeclarationError, match=r"moving the rows of 3.weight"):
        psi.declare(net, x, manifold=Sphere())
    assert declared(net) == written
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
