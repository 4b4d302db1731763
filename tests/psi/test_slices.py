"""`psi.find` on scale-invariant slices of fused weights, against labels derived by hand."""

import inspect

import pytest
import retract
import slice_networks
import torch
from pair_networks import entries, of_report, points
from retract import psi
from retract.manifolds import PSI, Part, Sphere
from slice_networks import Network
from torch import nn

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


def found(network, seed=0):
    torch.manual_seed(seed)
    model, inputs, *_ = network()
    return model, psi.find(model, inputs)


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (slice_networks.sections, (24, 12)),
        (slice_networks.interleaved, (8, 4) * 3),
        (slice_networks.two_granularities, (12, 12, 12)),
        (slice_networks.half_of_a_gate, (10, 10)),
        (slice_networks.some_heads, (8, 8, 4, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_split_sizes(network, sizes):
    _, report = found(network)
    (fused,) = [f.name for f in report if f.slices]
    assert report.split_sizes(fused) == sizes


def test_decay_groups():
    """Of a weight that is invariant in part the rest decides."""
    groups = {"values are a pair": slice_networks.sections, "nothing": slice_networks.some_heads}
    told = {rest: found(network)[1].decay_groups() for rest, network in groups.items()}
    assert slice_networks.W in told["values are a pair"]["balancing"]
    assert slice_networks.W in told["nothing"]["decay"]
    assert slice_networks.W in found(slice_networks.all_of_it)[1].decay_groups()["angular"]


def test_the_report_tells_slices():
    _, report = found(slice_networks.transposed_experts)
    assert "slices         3×10  up_bias" in str(report)
    assert "2 of 3 tensors are scale-invariant, 2 of them in slices: 390 of 1,140 parameters, 34.2 %." in str(report)
    up, bias, _ = report
    assert up.names == ("inner.up", "inner.up_bias")
    assert up.reason == "dim 2, 0–9 of 20 per block of 10 may be rescaled"
    assert bias.reason == "belongs in part to the points of inner.up"
    assert report.to_dict()["inner.up"]["slices"] == [repr(up.slices[0])]
    assert found(slice_networks.heads_inside)[1][0].reason == "rows 0–23 of 36 per 4 that are 3 apart may be rescaled"
    two = "rows 0–11 of 20 per block of 4; rows 12–19 of 20 per block of 8 may be rescaled"
    assert found(slice_networks.all_of_it)[1][0].reason == two


class Bounded(nn.Module):
    """Sections that are divided by their norms, or by a number where that is larger."""

    def __init__(self, bounds):
        super().__init__()
        self.bounds, self.project, self.o = (
            bounds,
            nn.Linear(6, 4 * len(bounds), bias=False),
            nn.Linear(4 * len(bounds), 3),
        )

    def forward(self, x):
        z = self.project(x).unflatten(-1, (-1, 4)).unbind(-2)
        z = [
            t if b is None else t / t.norm(dim=-1, keepdim=True).clamp(min=b)
            for t, b in zip(z, self.bounds, strict=True)
        ]
        return self.o(torch.cat(z, -1).tanh())


@pytest.mark.parametrize(
    ("bounds", "rows"), [((None, 0.02, 0.02), ""), ((0.0, None, 0.02), "rows 0–3 of 12 per block of 4")]
)
def test_what_is_invariant_within_bounds_is_not_reported(bounds, rows):
    """Next to the weights Euler's identity holds, and far from them the outputs change."""
    torch.manual_seed(0)
    (fused, *_) = psi.find(Bounded(bounds), torch.randn(20, 6) * 4)
    assert fused.reason.removesuffix(" may be rescaled") == rows if rows else not fused.slices


def test_an_eps_that_shows_hides_slices():
    torch.manual_seed(0)
    model = slice_networks.fused(nn.Linear(12, 36, bias=False), slice_networks.in_sections, slice_networks.Heads(3))
    for norm in model.inner.split.norms:
        norm.eps = 0.3
    fused, *_ = psi.find(model, *slice_networks.tokens())
    assert fused.granularity == "none"
    assert "the eps of a normalization layer hides it" in fused.reason


def test_frozen_and_zero_parts_are_told():
    model, _ = found(slice_networks.half_of_a_gate)
    model.inner.up.bias.requires_grad_(False)
    fused, *_ = psi.find(model, *slice_networks.tokens())
    assert fused.reason == "invariant with bias, but inner.up.bias is frozen"


def test_declared_with_the_pairs_beside_them():
    model, report = found(slice_networks.sections)
    report = report.declare(model, pairs=True)
    (fused, *_) = report
    manifolds = [declaration.manifold for declaration in retract.declared(model).values()]
    assert manifolds.count(PSI()) == 1
    assert sorted(d.k for d in manifolds if d != PSI()) == [1, 4]
    assert report.declared == (slice_networks.W,)
    assert "Declared on PSI(): 1 of 5 tensors, 288 of 596 parameters" in report.summary()
    again = report.declare(model)
    assert [str(fused.slices[0])] == [*retract.declared(model)]
    assert again.declared == (slice_networks.W,)
    unit = report.declare(model, representative="unit")
    assert unit.declared == again.declared
    assert model.inner.project.weight[:24].unflatten(0, (6, 4)).flatten(1).norm(dim=1).allclose(torch.ones(6))


def test_slices_that_were_declared_by_hand_stay():
    model, report = found(slice_networks.two_granularities)
    retract.declare(
        model, Part(slice_networks.W, 0, 24, 3, 4), Sphere()
    )  # values, which are in no point that was found
    assert report.declare(model).declared == (slice_networks.W,)
    assert len(retract.declared(model)) == 3
    model, report = found(slice_networks.two_granularities)
    retract.declare(model, Part(slice_networks.W, 0, 4, 1, 4), Sphere())
    (fused, *_) = report.declare(model)
    assert fused.reason.endswith("not declared, some of its entries belong to other points")
    model, report = found(slice_networks.two_granularities)
    retract.declare(model, slice_networks.W, Sphere())
    (fused, *_) = report.declare(model)
    assert fused.reason.endswith(f"not declared, {slice_networks.W} belongs to the points of {slice_networks.W}")
    assert [*retract.declared(model)] == [slice_networks.W]
