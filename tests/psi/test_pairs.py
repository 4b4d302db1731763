"""`psi.find` on pairs of factors, against labels derived by hand."""

import inspect

import pair_networks
import pair_networks_latent as latent
import pair_networks_of_units as units
import pytest
import torch
from pair_networks import Network, of_report, points
from retract import psi
from retract.manifolds import Rows
from snapshots import same, snapshot
from torch import nn

NETWORKS = [
    function
    for module in (pair_networks, latent, units)
    for function in vars(module).values()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and inspect.get_annotations(function).get("return") is Network
]


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


def found(network, seed=0):
    torch.manual_seed(seed)
    model, inputs, _ = network()
    return psi.find(model, inputs)


@pytest.mark.parametrize(
    ("network", "name", "dim", "sizes"),
    [
        (pair_networks.sections, "inner.mha.in_proj_weight", 0, (12, 12, 12)),
        (pair_networks.sections, "inner.mha.in_proj_bias", 0, (12, 12, 12)),
        (pair_networks.interleaved, "inner.project.weight", 0, (4,) * 9),
        (pair_networks.fused_rotary, "inner.project.weight", 0, (12, 12, 12)),
        (pair_networks.fused_groups, "inner.project.weight", 0, (6, 3, 3, 6, 3, 3)),
        (pair_networks.grouped_sections, "inner.project.weight", 0, (12, 6, 6)),
        (pair_networks.conv1d, "c_attn.weight", 1, (12, 12, 12)),
        (pair_networks.conv1d, "c_attn.weight", 0, (12,)),
        (pair_networks.gated_attention, "inner.q.weight", 0, (4, 4) * 3),
        (latent.latent_attention, "inner.kv_b.weight", 0, (4, 3) * 3),
        (latent.latent_attention, "inner.kv_a.weight", 0, (5, 2)),
        (pair_networks.rotary_in_part, "inner.q.weight", 0, (12,)),
        (units.geglu, "inner.gate_up.weight", 0, (10, 10)),
        (units.stacked_experts, "inner.up", 1, (10,)),
        (units.gelu, "0.weight", 0, (10,)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_split_sizes(network, name, dim, sizes):
    """Every boundary of logical matrices, and no other."""
    assert found(network).split_sizes(name, dim) == sizes
    assert found(network).split_sizes(name, dim - len(found(network).to_dict()[name]["shape"])) == sizes


def test_decay_groups():
    assert found(pair_networks.normed_queries).decay_groups() == {
        "decay": ("inner.o.bias",),
        "angular": ("inner.q.weight", "inner.k.weight"),
        "balancing": ("inner.v.weight", "inner.o.weight", "inner.norms.0.weight", "inner.norms.1.weight"),
    }


def test_the_report_prints_both_tables():
    report = found(pair_networks.rotary_in_part)
    text = str(report).splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith("factor B"))
    assert [line.split()[0] for line in text[start + 2 : start + 5]] == [
        "inner.k.weight[2@6·2@1(2@2)]",
        "inner.k.weight[4:,",
        "inner.o.weight[dim",
    ]
    assert text[start + 3].split()[:4] == ["inner.k.weight[4:,", "2@6]", "inner.q.weight[4:,", "2@6]"]
    assert "GL(2)" in text[start + 3]
    assert "rotary embedding: scalings only" in text[start + 2]
    assert "Pairs of factors: 3, with 8 points: 576 of 588 parameters, 98.0 %." in text
    assert report.to_dict()["inner.v.weight"]["pairs"][0]["group"] == "GL"


def test_only_what_may_be_turned_is_called_a_rotary_embedding():
    for network, reason in (
        (pair_networks.rotary_grouped_interleaved_in_part, "rotary embedding: scalings only"),
        (units.couples, "each may be rescaled"),
    ):
        (pair,) = (p for p in found(network).pairs if p.k == 1)
        assert pair.reason == reason


def test_what_stands_between_is_told():
    report = found(units.gelu)
    assert report.obstacles == ("GELU between 0.weight and 2.weight", "GELU between 2.weight and 4.weight")
    assert "No pair: GELU between 0.weight and 2.weight, and 1 more like it." in str(report)
    assert "SiLU between inner.gate.weight and inner.down.weight" in found(units.swiglu).obstacles
    assert not found(pair_networks.attention).obstacles


def test_the_model_comes_out_as_it_went_in():
    torch.manual_seed(0)
    model, inputs, _ = pair_networks.rotary_grouped()
    before = snapshot(model)
    psi.find(model, inputs)
    assert same(before, snapshot(model))


def test_units_that_are_off_or_on_for_all_inputs():
    """A slope that all inputs see, and a linear layer that none leaves, are no pairs of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.PReLU(10), nn.Linear(10, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-9.0, 9.0] * 5))
    (pair,) = psi.find(model, torch.randn(20, 6)).pairs
    assert (pair.points, pair.group, pair.k) == (10, "positive scaling", 1)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.ReLU6(), nn.Linear(5, 3)) for _ in range(30))

    def forward(self, x):
        return torch.stack([branch(x) for branch in self.branches])


def test_few_passes_leave_pairs_untold():
    """Layers that clip at six fail one by one: what cannot be confirmed within the passes is not reported."""
    torch.manual_seed(0)
    model = Branches()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    report = psi.find(model, torch.randn(30, 4))
    assert not report.pairs
    assert "Note: the forward passes were used up before all candidates for pairs had been tested" in str(report)
    assert len(calls) <= 40


def test_one_live_slice_is_no_finer_point():
    """Of a grouped convolution's outputs only one in each group matters: a channel is a point all the same, not what is left of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.LeakyReLU(0.1), nn.ConvTranspose1d(6, 6, 3, groups=3))
    head = nn.Conv1d(6, 2, 1)
    pick = torch.tensor([1.0, 0.0]).repeat(3)[:, None]
    model.forward = lambda x: head(nn.Sequential.forward(model, x) * pick)
    (pair,) = psi.find(model, torch.randn(5, 3, 7)).pairs
    assert [(part.name, part.dim) for part in pair.factors.parts] == [("2.weight", 0), ("0.weight", 0), ("0.bias", 0)]
    assert pair.points == 6


def test_layers_of_one_unit():
    """That the whole of a weight belongs to one unit makes it no less a pair."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.Linear(5, 1), nn.LeakyReLU(0.1), nn.Linear(1, 3))
    report = psi.find(model, torch.randn(20, 4))
    assert [(str(pair.factors), pair.points) for pair in report.pairs] == [
        ("2.weight[dim 1] × 0.weight + 0.bias", 5),
        ("4.weight[dim 1] × 2.weight + 2.bias", 1),
    ]


def test_images_of_one_pixel():
    """Only the middles of kernels have a gradient: they stand for all of them, and are no points of their own."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 5, 3, padding=1, bias=False)]
    head = nn.Conv2d(5, 2, 3, padding=1, bias=False)
    report = psi.find(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), head), torch.randn(12, 3, 1, 1))
    assert [str(pair.factors) for pair in report.pairs] == ["2.weight[dim 1] × 0.weight", "4.weight[dim 1] × 2.weight"]
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(5)]
    model = nn.Sequential(layers[0], norms[0], nn.ReLU(), layers[1], norms[1], nn.ReLU(), head)
    report = psi.find(model, torch.randn(12, 3, 1, 1))
    assert [f.rows for f in report if f.granularity == "row"] == [Rows(), Rows()]
