"""`psi.find` against labels derived by hand, and `psi.declare` on what it finds."""

import copy
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from networks import batches
from retract import declared, param_groups, psi
from retract.manifolds import PSI, Rows, Sphere
from retract.manifolds.errors import DeclarationError
from retract.optim import PSISGD
from torch import nn
from zoo import ZOO, Attention, conv_relu_bn, conv_silu_bn, fused_in_proj, resnet20, tied, vgg


@pytest.mark.parametrize("network", ZOO, ids=lambda f: f.__name__)
@pytest.mark.parametrize("repeat", range(3))
def test_labels(network, repeat, device):
    torch.manual_seed(repeat)
    model, inputs, labels = network()
    model, inputs = model.to(device), tuple(x.to(device) for x in inputs)
    report = psi.find(model, *inputs)
    found = {f.name: (f.granularity, f.rows, f.joined) for f in report if f.granularity != "none"}
    assert found == labels, f"\n{report}"
    assert [f.name for f in report] == [name for name, _ in model.named_parameters()]
    for f in report:
        assert f.reason
        if f.granularity != "none":
            assert f.radial < 1e-7
            assert f.leak < 0.01


def snapshot(model):
    """Everything of a model that probing must leave alone."""
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        {n: (p.requires_grad, p.grad, p.dtype, p.data_ptr()) for n, p in model.named_parameters()},
        [(m.training, list(m._forward_hooks), list(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()],
        torch.get_rng_state(),
        torch.get_default_dtype(),
    )


def same(a, b):
    return (
        all(torch.equal(a[0][k], b[0][k]) for k in a[0])
        and a[1:3] == b[1:3]
        and torch.equal(a[3], b[3])
        and a[4] == b[4]
    )


@pytest.mark.parametrize("network", [resnet20, fused_in_proj, vgg], ids=lambda f: f.__name__)
def test_the_model_comes_out_as_it_went_in(network):
    model, inputs, _ = network()
    next(model.parameters()).requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    with torch.no_grad():
        psi.find(model, *inputs)
    assert same(before, snapshot(model))
    with pytest.raises(psi.ProbeError, match=r"the forward pass failed in probe 0 \(the inputs as given, float64\): "):
        psi.find(model, inputs[0][..., :1, :1, None])
    assert same(before, snapshot(model))


def test_cost(monkeypatch):
    """Two backward passes, a handful of forward ones, whatever the number of tensors."""
    model, inputs, _ = resnet20()
    calls = {"forward": 0, "backward": 0}
    model.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        calls["backward"] += 1
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    psi.find(model, *inputs)
    assert calls == {"forward": 11, "backward": 2}


class Careless(nn.Module):
    """Leaves things on itself in its forward pass, and flips a flag."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.Dropout(0.5)
        self.kept = torch.ones(2)

    def forward(self, x):
        self.cache = self.kept = self.drop(self.linear(x))
        self.norm.training = not self.norm.training
        return self.norm(self.cache)


def test_careless_models_and_random_states():
    model, x = Careless(), torch.randn(3, 4)
    before = snapshot(model)
    reports = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        reports.append(psi.find(model, x).to_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert str(reports[0]) == str(reports[1])
    assert reports[0]["linear.weight"]["granularity"] == "tensor"
    assert before[2] == snapshot(model)[2]
    assert torch.equal(model.kept, torch.ones(2))
    assert not hasattr(model, "cache")


def test_modules_used_under_two_names():
    """The module comes out as it went in, in float32 and float64, with its running statistics."""
    for dtype in (torch.float32, torch.float64):
        conv, norm = nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)
        model = nn.Sequential(conv, norm, nn.ReLU(inplace=True), conv, norm, nn.Linear(6, 2)).to(dtype)
        x = torch.randn(8, 6, dtype=dtype)
        given, before = x.clone(), snapshot(model)
        report = psi.find(nn.Sequential(nn.ReLU(inplace=True), model), x)
        assert same(before, snapshot(model))
        assert torch.equal(x, given)
        assert type(model[0]._parameters["weight"]) is nn.Parameter
        assert model(x).dtype == dtype
        assert report[0].granularity == "row"


class Counting(nn.Module):
    """Keeps all kinds of state, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.LayerNorm(6)
        self.calls, self.history, self.cache, self.ema = 0, [], {}, torch.zeros(6)

    def forward(self, x):
        y = self.linear(x)
        self.calls += 1
        self.history.append(self.calls)
        self.cache["y"] = y
        self.ema.mul_(0.9).add_(y.detach().mean(0))
        return self.norm(y) * (0.5 + random.random()) * np.random.rand()


def test_state_of_every_kind_is_put_back():
    model = Counting()
    random.seed(3)
    np.random.seed(3)
    report = psi.find(model, torch.randn(3, 4))
    assert report[0].granularity == "tensor"
    assert (model.calls, model.history, model.cache) == (0, [], {})
    assert not model.ema.any()
    after = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    assert after == (random.random(), np.random.rand())


@pytest.mark.parametrize("std", [1e-6, 1e-4, 1e-3])
def test_small_biases_and_gains_count(std):
    """A bias or gain that is tiny now does not hide."""
    for layers, expected in (
        ([nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(6)], ("row", ("bias",))),
        ([nn.Linear(5, 6), nn.LayerNorm(6)], ("tensor", ("bias",))),
    ):
        nn.init.normal_(layers[0].bias, std=std)
        finding = psi.find(nn.Sequential(*layers), torch.randn(16, 5))[0]
        assert (finding.granularity, finding.joined) == expected

    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.inner = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 6)
            self.gamma, self.out = nn.Parameter(std * torch.ones(6)), nn.LayerNorm(6)

        def forward(self, x):
            x = self.stem(x)
            return self.out(x + self.gamma * self.inner(self.norm(x)))

    assert psi.find(Stem(), torch.randn(16, 5))[0].granularity == "none"


def test_deep_groupnorm_stacks_keep_their_biases():
    """No gain is found whose next convolution has a live bias, and no convolution without its own."""
    for seed in range(20):
        torch.manual_seed(seed)
        layers, width = [], 3
        for _ in range(4):
            layers += [nn.Conv2d(width, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()]
            width = 8
        report = psi.find(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 3)), torch.randn(4, 3, 6, 6))
        found = {f.name: (f.granularity, f.rows, f.joined) for f in report.invariant}
        assert found == {f"{3 * i}.weight": ("block", Rows(blocks=2), ("bias",)) for i in range(4)}, f"{seed}\n{report}"


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.Softplus, nn.Mish, nn.Hardswish])
def test_raw_pixels_do_not_make_smooth_activations_homogeneous(activation):
    """At inputs up to 255 they all look like ReLU."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(16, 8), activation(), nn.BatchNorm1d(8))
        assert not psi.find(model, 255 * torch.rand(32, 16)).invariant


def test_outputs_of_every_kind_must_not_change():
    class Spectrum(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.linear, self.norm, self.kind = nn.Linear(4, 6, bias=False), nn.LayerNorm(6), kind

        def forward(self, x):
            h = self.linear(x)
            extra = {"complex": lambda: torch.fft.rfft(h), "flags": lambda: h > 0.3, "none": lambda: h.argmax(-1)}
            return self.norm(h), extra[self.kind]()

    for kind, granularity in (("complex", "none"), ("flags", "none"), ("none", "tensor")):
        assert psi.find(Spectrum(kind), torch.randn(32, 4))[0].granularity == granularity, kind


def test_inputs_that_must_not_be_perturbed():
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    psi.find(nn.TransformerEncoderLayer(8, 2, 16), torch.randn(5, 3, 8), src_mask=mask)
    psi.find(nn.EmbeddingBag(7, 4), torch.randint(7, (6,)), torch.tensor([0, 2, 4]))

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)

        def forward(self, x, lengths, target):
            packed = nn.utils.rnn.pack_padded_sequence(self.norm(self.first(x)), lengths, batch_first=True)
            return nn.functional.binary_cross_entropy(packed.data.sigmoid().mean(), target)

    report = psi.find(Packed(), torch.randn(3, 5, 4), torch.tensor([5, 3, 2]), torch.tensor(0.3))
    assert report[0].granularity == "tensor"


def test_what_cannot_be_declared_says_why():
    net = nn.Sequential(nn.Embedding(9, 6, padding_idx=0), nn.LayerNorm(6), nn.Linear(6, 4))
    report = psi.declare(net, torch.arange(9).repeat(2, 1))
    assert report[0].reason == "invariant, but row 0 is zero"
    assert declared(net) == {}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    net[0].bias.requires_grad_(False)
    report = psi.declare(net, torch.randn(4, 3, 6, 6))
    assert report[0].reason == "invariant with bias, but bias is frozen"
    assert declared(net) == {}


def test_reasons():
    def reasons(network):
        model, inputs, _ = network()
        return {f.name: f.reason for f in psi.find(model, *inputs)}

    assert reasons(conv_silu_bn)["0.weight"] == "SiLU between weight and norm"
    assert reasons(resnet20)["3.bn2.weight"] == "feeds a residual sum"
    assert reasons(resnet20)["14.weight"] == "no norm behind it"
    assert reasons(vgg)["0.bias"] == "gradient is zero: cannot tell"
    assert reasons(conv_relu_bn)["0.bias"] == "belongs to the points of 0.weight"
    assert reasons(tied)["encoder.weight"] == "shared with decoder.weight"
    assert reasons(fused_in_proj)["qkv.weight"] == "only a part is invariant: 6 of 9 blocks"

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
    for options in ({}, {"mask": torch.ones(4, 5)}, {"probes": 1}, {"probes": 3}):
        report = psi.find(model, tokens=tokens, **options)
        assert {f.name: f.granularity for f in report.invariant} == {"embed.weight": "row", "a.weight": "tensor"}


def test_zero_initialized_branches_are_seen():
    """A gain of zero at initialization does not hide the branch in front of it."""
    model, inputs, labels = resnet20()
    for i in range(3, 12):
        nn.init.zeros_(model[i].bn2.weight)
    found = {f.name: (f.granularity, f.rows, f.joined) for f in psi.find(model, *inputs).invariant}
    assert found == labels


def test_report_prints_converts_and_plots(tmp_path):
    model, inputs, _ = vgg()
    report = psi.find(model, *inputs)
    text = str(report).splitlines()
    assert text[0].split()[:3] == ["parameter", "shape", "invariant"]
    starts = {line.index("axis 0") for line in text if "axis 0" in line}
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


def test_declare_declares_what_is_found_and_trains():
    torch.manual_seed(0)
    model, inputs, labels = resnet20()
    report = psi.declare(model, *inputs)
    assert {name: (d.rows, d.joined) for name, d in declared(model).items()} == {
        name: (rows, joined) for name, (_, rows, joined) in labels.items()
    }
    assert len(report.invariant) == len(labels)
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
        psi.declare(model, *inputs, manifold=Sphere())
    assert declared(model) == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    psi.declare(model, *inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fresh, inputs, labels = resnet20()
    psi.declare(fresh, *inputs, manifold=Sphere())
    assert all(d.manifold == Sphere() for d in declared(fresh).values())
    assert len(declared(fresh)) == len(labels)


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
        "whole.weight": (Rows(blocks=1), ("bias",)),
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
    with pytest.raises(psi.ProbeError, match="failed in probe 0 .*Expected more than 1 value per channel"):
        psi.find(net, x[:1])
    with pytest.raises(psi.ProbeError, match="not finite in probe 0"):
        psi.find(net, x * float("inf"))
    with pytest.raises(psi.ProbeError, match="no output of the model is a floating-point tensor that depends"):
        psi.find(nn.Sequential(net, nn.Flatten(0), Argmax()), x)
    with pytest.raises(psi.ProbeError, match=r"failed in probe 0 .*device"):
        psi.find(net, x.to("meta"))
    with pytest.raises(psi.ProbeError, match="failed in probe 0 .*TypeError"):
        psi.find(net)
    with pytest.raises(psi.ProbeError, match="at least the given inputs"):
        psi.find(net, x, probes=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
