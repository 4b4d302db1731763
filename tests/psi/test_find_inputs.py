"""`psi.find` and `psi.declare` take inputs as torch.export.export does; `Report.declare` does what `psi.declare` does."""

import copy
import re

import pytest
import torch
from retract import declare, declared, psi
from retract.errors import DeclarationError, OptionError
from retract.manifolds import PSI, Declaration, Sphere, Stiefel
from torch import nn


class Scaled(nn.Module):
    """With arguments that are called as options of `find` and `declare` are."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.LayerNorm(6)

    def forward(self, x, probes=None, manifold=None):
        return self.norm(self.linear(x)) * (1.0 if probes is None else probes) + (0.0 if manifold is None else manifold)


x, scale = torch.ones(5, 4).cumsum(0).sin(), torch.full((6,), 0.5)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (x, None),
        ((x,), {}),
        ([x, scale], None),
        ((x, scale, scale), None),
        (x, {"probes": scale, "manifold": scale}),
        ((), {"x": x, "manifold": scale}),
    ],
)
@pytest.mark.parametrize("call", [psi.find, psi.declare])
def test_inputs_have_a_namespace_of_their_own(call, args, kwargs):
    report = call(Scaled(), args, kwargs, probes=1)
    assert [f.granularity for f in report] == ["tensor", "none", "none"]


@pytest.mark.parametrize("call", [psi.find, psi.declare])
def test_what_is_no_tuple_of_inputs(call):
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 2)])
    for batch in ({"x": x}, None, packed, "x"):
        said = f"args is of type {type(batch).__name__}: give a tensor, or a tuple .*args=(input,).*kwargs="
        with pytest.raises(TypeError, match=re.escape(said).replace(r"\.\*", ".*")):
            call(Scaled(), batch)
    with pytest.raises(TypeError, match=r"kwargs is of type Tensor: give a mapping .*args=\(first, second\)"):
        call(Scaled(), x, scale)


def test_a_report_declares_what_psi_declare_does():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.LayerNorm(5))
    inputs = torch.randn(16, 6)
    twin = copy.deepcopy(net)
    report = psi.find(net, inputs)
    told = report.declare(net, manifold=Sphere(), representative="keep")
    assert str(told) == str(psi.declare(twin, inputs, manifold=Sphere()))
    assert declared(net) == declared(twin) == {"0.weight": Declaration(Sphere()), "3.weight": declared(net)["3.weight"]}
    for ours, others in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, others)
    assert report.declared == ()
    # Again, and of another manifold: what is there is replaced, and what is not found any more goes.
    assert told.declare(net).declared == told.declared == ("0.weight", "3.weight", "3.bias")
    assert {d.manifold for d in declared(net).values()} == {PSI()}
    net[1].eval()
    later = psi.find(net, inputs).declare(net)
    assert later[0].reason.endswith("; no longer declared")
    assert list(declared(net)) == ["3.weight"]
    assert later.declare(net)[0].reason == "BatchNorm is in eval mode"


def test_a_report_declares_all_or_nothing():
    net, inputs = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), torch.randn(16, 6)
    report = psi.find(net, inputs)
    with pytest.raises(OptionError, match=r"Stiefel\(\) is no manifold of vectors"):
        report.declare(net, manifold=Stiefel())
    with pytest.raises(DeclarationError, match=r"another model: it found 0.weight of shape \(8, 6\), and .* \(8, 7\)"):
        report.declare(nn.Sequential(nn.Linear(7, 8), nn.LayerNorm(8)))
    with pytest.raises(DeclarationError, match="another model: it found 0.weight .* this one has no such parameter"):
        report.declare(net[0])
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
    with pytest.raises(DeclarationError, match="zero"):
        report.declare(net)
    assert declared(net) == {}


def test_a_report_leaves_alone_what_was_declared_by_hand():
    net, inputs = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), torch.randn(16, 6)
    report = psi.find(net, inputs)
    declare(net, "0.bias", Sphere(), report[0].rows)
    told = report.declare(net)
    assert told.declared == ()
    assert told[0].reason.endswith("; not declared, 0.bias belongs to the points of 0.bias")


@pytest.mark.parametrize("manifold", ["PSI", Sphere])
def test_what_is_no_manifold_is_refused_before_the_measurement(manifold):
    """The name of one used to end in an AttributeError, a class only after all probes."""

    def never(*_):
        raise AssertionError("the model ran")

    net = nn.Linear(6, 8)
    net.forward = never
    with pytest.raises(DeclarationError, match="is not a Manifold; pass an instance such as Sphere"):
        psi.declare(net, torch.randn(16, 6), manifold=manifold)
