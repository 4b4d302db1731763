"""`psi.find` against labels derived by hand, and `psi.declare` on what it finds."""

import copy
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from networks import batches
from retract import declared, param_groups, psi
from retract.errors import DeclarationError, OptionError
from retract.manifolds import PSI, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD
from snapshots import same, snapshot
from torch import nn
from zoo import ZOO, Attention, conv_relu_bn, conv_silu_bn, fused_in_proj, mobilenet, resnet20, tied, vgg


@pytest.mark.parametrize("network", ZOO, ids=lambda f: f.__name__)
@pytest.mark.parametrize("repeat", range(3))
def test_labels(network, repeat, device):
    torch.manual_seed(repeat)
    model, inputs, labels = network()
    model, inputs = model.to(device), tuple(x.to(device) for x in inputs)
    report = psi.find(model, inputs)
    found = {f.name: (f.granularity, f.rows, f.joined) for f in report if f.granularity != "none"}
    assert found == labels, f"\n{report}"
    assert [f.name for f in report] == [name for name, _ in model.named_parameters()]
    for f in report:
        assert f.reason
        if f.granularity != "none":
            assert f.radial_ratio < 1e-7
            assert f.eps_leak < 0.01


@pytest.mark.parametrize("network", [resnet20, fused_in_proj, vgg], ids=lambda f: f.__name__)
def test_the_model_comes_out_as_it_went_in(network):
    model, inputs, _ = network()
    next(model.parameters()).requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    with torch.no_grad():
        psi.find(model, inputs)
    assert same(before, snapshot(model))
    with pytest.raises(psi.ProbeError, match=r"the model failed in probe 0 \(the inputs as given, float64\): "):
        psi.find(model, inputs[0][..., :1, :1, None])
    assert same(before, snapshot(model))


class Counted(torch.autograd.Function):
    """The identity, counting its passes."""

    calls: ClassVar = {}

    @staticmethod
    def forward(ctx, x):
        Counted.calls["forward"] += 1
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Counted.calls["backward"] += 1
        return grad


@pytest.mark.parametrize("network", [vgg, resnet20, mobilenet], ids=lambda f: f.__name__)
def test_cost(network):
    """A bounded number of passes, whatever the number of tensors."""
    model, inputs, _ = network()
    model.forward = lambda x: Counted.apply(nn.Sequential.forward(model, x))
    Counted.calls = {"forward": 0, "backward": 0}
    psi.find(model, inputs)
    assert Counted.calls["forward"] <= 38
    assert Counted.calls["backward"] <= 9


def test_reasons():
    def reasons(network):
        model, inputs, _ = network()
        return {f.name: f.reason for f in psi.find(model, inputs)}

    assert reasons(conv_silu_bn)["0.weight"] == "SiLU between weight and normalization layer"
    assert reasons(resnet20)["3.bn2.weight"] == "feeds a residual sum"
    assert reasons(resnet20)["14.weight"] == "not followed by a normalization layer"
    assert reasons(vgg)["0.bias"] == "gradient is zero: cannot tell; more samples or other inputs may"
    assert reasons(conv_relu_bn)["0.bias"] == "belongs to the points of 0.weight"
    assert reasons(tied)["encoder.weight"] == "shared with decoder.weight"
    assert reasons(fused_in_proj)["qkv.weight"] == ("rows 0–23 of 36 per block of 4 may be rescaled")

    def frozen():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
        net[1].eval()
        return net, (torch.randn(3, 3, 6, 6),), {}

    assert reasons(frozen)["0.weight"] == "BatchNorm is in eval mode"

    def unused():
        net = nn.Sequential(nn.Linear(3, 3))
        net.spare = nn.Identity()
        net.spare.weight = nn.Parameter(torch.ones(2))
        net.forward = lambda x: net[0](x)
        return net, (torch.randn(3, 3),), {}

    assert reasons(unused)["spare.weight"] == "not used in the forward pass"


class Structured(nn.Module):
    """Keyword inputs, nested outputs, dropout, and token ids."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.norm = nn.Embedding(7, 6), nn.Linear(6, 6, bias=False), nn.LayerNorm(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, *, tokens, mask=None):
        y = self.norm(self.a(self.drop(self.embed(tokens))))
        y = y if mask is None else y * mask.unsqueeze(-1)
        return {"hidden": (y, [y.sum(-1)]), "ids": tokens, "note": "text"}


def test_keyword_inputs_nested_outputs_and_dropout():
    model = Structured()
    tokens = torch.randint(7, (4, 5))
    given = {"tokens": tokens}
    for kwargs, probes in ((given, 2), (given | {"mask": torch.ones(4, 5)}, 2), (given, 1), (given, 3)):
        report = psi.find(model, kwargs=kwargs, probes=probes)
        assert {f.name: f.granularity for f in report.invariant} == {"embed.weight": "row", "a.weight": "tensor"}


def test_zero_initialized_branches_are_seen():
    """A gain of zero at initialization does not hide the branch in front of it."""
    model, inputs, labels = resnet20()
    for i in range(3, 12):
        nn.init.zeros_(model[i].bn2.weight)
    found = {f.name: (f.granularity, f.rows, f.joined) for f in psi.find(model, inputs).invariant}
    assert found == labels


def test_report_prints_converts_and_plots(tmp_path):
    model, inputs, _ = vgg()
    report = psi.find(model, inputs)
    text = str(report).splitlines()
    assert text[0].split()[:3] == ["parameter", "shape", "invariant"]
    starts = {line.index("dim 0") for line in text if "dim 0" in line}
    assert len(starts) == 1, "columns are aligned"
    assert text[-1] == "7 of 14 tensors are scale-invariant: 1,198 of 2,526 parameters, 47.4 %."
    values = report.to_dict()
    assert values["0.weight"]["granularity"] == "row"
    assert values["1.weight"]["joined"] == ("bias",)
    assert len(report) == len(values) == 14
    assert report[0].name == "0.weight"
    import matplotlib

    matplotlib.use("agg")
    ax = report.plot()
    assert len(ax.patches) == 14
    ax.figure.savefig(tmp_path / "report.png")
    matplotlib.pyplot.close(ax.figure)


def weights(model, labels):
    """Those `labels` that are not of gains."""
    return {name: label for name, label in labels.items() if model.get_parameter(name).ndim > 1}


def test_the_report_says_what_was_declared():
    """A weight and the bias that scales along, and not the gains in front of the next norm."""
    net = nn.Sequential(
        nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )
    x = torch.randn(16, 4)
    assert "Declared" not in str(psi.find(net, x))
    report = psi.declare(net, x, manifold=Grassmann(1))
    assert report.declared == ("0.weight", "0.bias", "3.weight")
    assert str(report).endswith("Declared on ProjectiveSpace(): 3 of 10 tensors, 104 of 162 parameters, 64.2 %.")
    with pytest.raises(OptionError, match=r"Stiefel\(\) is no manifold of vectors"):
        psi.declare(net, x, manifold=Stiefel())


def test_declare_declares_what_is_found_and_trains():
    torch.manual_seed(0)
    model, inputs, labels = resnet20()
    report = psi.declare(model, inputs)
    assert {name: (d.rows, d.joined) for name, d in declared(model).items()} == {
        name: (rows, joined) for name, (_, rows, joined) in weights(model, labels).items()
    }
    assert len(report.invariant) == len(labels) > len(declared(model)), "gains are found, and stay Euclidean"
    before = {name: model.get_parameter(name).detach().clone() for name in labels}
    optimizer = PSISGD(param_groups(model), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[0]), torch.arange(4))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for name, w in before.items():
        assert not torch.equal(model.get_parameter(name), w), name


def test_declare_is_all_or_nothing():
    model, inputs, _ = resnet20()
    model(inputs[0])  # statistics have moved, so moving rows is refused
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DeclarationError, match="running statistics that have been trained"):
        psi.declare(model, inputs, manifold=Sphere())
    assert declared(model) == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    psi.declare(model, inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fresh, inputs, labels = resnet20()
    psi.declare(fresh, inputs, manifold=Sphere())
    assert all(d.manifold == Sphere() for d in declared(fresh).values())
    assert len(declared(fresh)) == len(weights(fresh, labels))


class Mixed(nn.Module):
    """Joint rows, joint blocks and joint whole tensors, with eps that does not show."""

    def __init__(self):
        super().__init__()
        self.rows, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-30)
        self.blocks, self.gn = nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6, eps=1e-30)
        self.whole, self.ln = nn.Linear(24, 5), nn.LayerNorm(5, eps=1e-30)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        y = self.bn(torch.relu(self.rows(x)))
        return self.head(self.ln(self.whole(self.gn(self.blocks(y)).flatten(1))))


@pytest.mark.parametrize("transport", ["none", "project", "parallel"])
def test_theorem_1_with_joint_points_blocks_and_tensors(transport, device):
    torch.manual_seed(0)
    model = Mixed().to(device, torch.float64)
    data = list(batches(100, 16, 1, 6, 6, device=device))
    psi.declare(model, data[0][0])
    assert {n: (d.rows, d.joined) for n, d in declared(model).items()} == {
        "rows.weight": (Rows(), ("bias",)),
        "blocks.weight": (Rows(blocks=3), ("bias",)),
        "whole.weight": (Rows.whole(), ("bias",)),
    }
    curves = []
    for scaled in (False, True):
        net = copy.deepcopy(model)
        if scaled:
            with torch.no_grad():
                for layer, points in ((net.rows, 4), (net.blocks, 3), (net.whole, 1)):
                    factors = 10.0 ** (8 * torch.rand(points, dtype=torch.float64, device=device) - 4)
                    for p in layer.parameters():
                        p.mul_(factors.repeat_interleave(p.shape[0] // points).view(-1, *[1] * (p.ndim - 1)))
        optimizer = PSISGD(param_groups(net), lr=0.03, momentum=0.9, transport=transport)
        losses = []
        for x, y in data:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
        assert all(not torch.equal(a, b) for a, b in zip(net.parameters(), model.parameters(), strict=True))
    assert (curves[0] - curves[1]).abs().max() <= 1e-10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory():
    """Peak memory beyond the model: at most 5 × the model, for one dominated by a single tensor."""
    code = """
import resource, torch
from torch import nn
from retract import psi
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
psi.find(small, torch.randn(4, 8))
model = nn.Sequential(nn.Linear(6000, 6000), nn.LayerNorm(6000))
before = peak()
report = psi.find(model, torch.randn(4, 6000))
assert report[0].granularity == "tensor", str(report)
size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
print((peak() - before) / size)
"""
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert float(output.stdout) <= 5


def test_bad_input():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(5, 3)
    with pytest.raises(
        psi.ProbeError, match=r"eval mode: with frozen running statistics \(1\) .*Call model.train\(\) first"
    ):
        psi.find(net.eval(), x)
    net.train()
    with pytest.raises(psi.ProbeError, match="the model failed in probe 0 .*Expected more than 1 value per channel"):
        psi.find(net, x[:1])
    with pytest.raises(psi.ProbeError, match="not finite in probe 0"):
        psi.find(net, x * float("inf"))
    with pytest.raises(psi.ProbeError, match="no output of the model is a floating-point tensor that depends"):
        psi.find(nn.Sequential(net, nn.Flatten(0), Argmax()), x)
    with pytest.raises(psi.ProbeError, match=r"the model failed in probe 0 .*device"):
        psi.find(net, x.to("meta"))
    with pytest.raises(psi.ProbeError, match=r"the model failed in probe 0 .*TypeError.*goes in .* args=\(input,\)"):
        psi.find(net, [x, x])
    with pytest.raises(psi.ProbeError, match="an integer, and at least 1 for the given inputs"):
        psi.find(net, x, probes=0)
    scripted = torch.jit.script(nn.Linear(3, 4))
    with pytest.raises(psi.ProbeError, match="a scripted module cannot be probed"):
        psi.find(scripted, x)
    with pytest.raises(psi.ProbeError, match="lazy parameter without a shape"):
        psi.find(nn.LazyLinear(3), x)
    with pytest.raises(psi.ProbeError, match="meta device"):
        psi.find(nn.Linear(3, 4, device="meta"), x)


class Argmax(nn.Module):
    def forward(self, x):
        return x.argmax(-1)


def test_eval_mode_without_running_statistics_is_fine():
    report = psi.find(Attention(12, 3, qk_norm=True).eval(), torch.randn(2, 5, 12))
    assert {f.name for f in report.invariant} == {"q.weight", "k.weight"}


def test_frozen_and_half_precision_parameters_and_psi_manifold_default():
    model, inputs, labels = vgg()
    model = model.to(torch.bfloat16).requires_grad_(False)
    report = psi.declare(model, inputs[0])
    assert {f.name for f in report.invariant} == set(labels)
    assert all(d.manifold == PSI() for d in declared(model).values())
