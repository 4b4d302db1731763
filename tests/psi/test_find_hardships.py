"""`psi.find` where it is hard: careless models, tiny parameters, raw pixels, delicate inputs."""

import random

import numpy as np
import pytest
import torch
from retract import declared, psi
from retract.manifolds import Rows
from snapshots import same, snapshot
from torch import nn


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
    psi.find(nn.TransformerEncoderLayer(8, 2, 16), torch.randn(5, 3, 8), {"src_mask": mask})
    psi.find(nn.EmbeddingBag(7, 4), (torch.randint(7, (6,)), torch.tensor([0, 2, 4])))

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)

        def forward(self, x, lengths, target):
            packed = nn.utils.rnn.pack_padded_sequence(self.norm(self.first(x)), lengths, batch_first=True)
            return nn.functional.binary_cross_entropy(packed.data.sigmoid().mean(), target)

    report = psi.find(Packed(), (torch.randn(3, 5, 4), torch.tensor([5, 3, 2]), torch.tensor(0.3)))
    assert report[0].granularity == "tensor"


def test_what_cannot_be_declared_says_why():
    net = nn.Sequential(nn.Embedding(9, 6, padding_idx=0), nn.LayerNorm(6), nn.Linear(6, 4))
    report = psi.declare(net, torch.arange(9).repeat(2, 1))
    assert report[0].reason == "invariant, but row 0 is zero"
    assert declared(net) == {}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    net[0].bias.requires_grad_(False)
    report = psi.declare(net, torch.randn(4, 3, 6, 6))
    assert report[0].reason == "invariant with bias, but 0.bias is frozen"
    assert declared(net) == {}


def test_clamps_and_smooth_functions_between_weight_and_norm():
    """What is homogeneous only for small or only for large arguments, however faint that is at the present scale."""
    for seed in range(10):
        torch.manual_seed(seed)
        for layers in (
            [nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.SiLU(), nn.SiLU()],
            [nn.Conv1d(4, 4, 3, bias=False), nn.ReLU6()],
            [nn.Conv1d(4, 4, 3, bias=False), nn.Hardshrink(0.01)],
            [nn.Conv1d(4, 4, 3, bias=False), nn.Softsign()],
        ):
            model = nn.Sequential(*layers, nn.InstanceNorm1d(4))
            report = psi.find(model, torch.randn(5, 4, 9))
            assert not report.invariant, f"{seed}\n{model}\n{report}"


class LanguageNorm(nn.Module):
    """RMS norm as language models write it: in float32, with an eps of its own or in a buffer."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("small", torch.tensor(1e-5))

    def forward(self, x):
        y = {"to": lambda: x.to(torch.float32), "float": x.float, "type": lambda: x.to(dtype=torch.bfloat16)}[
            self.kind
        ]()
        square = y.pow(2).mean(-1, keepdim=True)
        eps = {"to": 1e-5, "float": self.small, "type": 1e-3}[self.kind]
        root = (eps + square).sqrt() if self.kind == "to" else torch.sqrt(square + eps)
        return (y / root).to(x.dtype)


@pytest.mark.parametrize("kind", ["to", "float", "type"])
def test_norms_that_cast_and_eps_written_by_hand(kind):
    """No narrower type and no eps stands in the way of a strict test; what the eps leaks is told all the same."""
    model = nn.Sequential(nn.Linear(8, 6), LanguageNorm(kind), nn.Linear(6, 2))
    finding = psi.find(model, torch.randn(16, 8))[0]
    assert (finding.granularity, finding.joined) == ("tensor", ("bias",))
    assert finding.radial_ratio < 1e-12
    assert 1e-7 < finding.eps_leak < 1e-2


def test_leaks_that_hide_an_invariance():
    """Rows at 1e-4 in front of an eps of 1e-5 are not invariant as they are, be it a single one."""
    for rows, words in ((slice(None, None, 2), "10 of 20 rows leak"), (slice(3, 4), "1 of 20 rows leak")):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20))
        with torch.no_grad():
            model[0].weight[rows] *= 1e-4
        report = psi.find(model, torch.randn(64, 8))
        assert report[0].granularity == "none"
        assert report[0].reason.startswith(f"the eps of a normalization layer hides it: {words}, up to ")
        assert not report.invariant
        model[1].eps = 1e-30
        # A row at 1e-4 is rounded to 3e-8 of the bias that is added to it, in float32: to 3e-4 of itself.
        assert psi.find(model, torch.randn(64, 8))[0].eps_leak < 1e-3
        assert psi.find(model.double(), torch.randn(64, 8).double())[0].eps_leak < 1e-8


@pytest.mark.parametrize("how", ["checkpoint", "compile", "autocast"])
def test_checkpointed_compiled_and_autocast_models(how):
    """The verdicts do not depend on how a model is run, and no compiler is started."""
    plain = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    expected = [(f.granularity, f.joined) for f in psi.find(plain, torch.randn(16, 6))]
    model = plain
    if how == "checkpoint":

        class Checkpointed(nn.Sequential):
            def forward(self, x):
                return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

        model = Checkpointed(*plain)
    elif how == "compile":
        model = torch.compile(plain, backend=lambda *_: pytest.fail("compiled"))
    else:

        class Autocast(nn.Sequential):
            def forward(self, x):
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(x)

        model = Autocast(*plain)
    report = psi.find(model, torch.randn(16, 6))
    assert [(f.granularity, f.joined) for f in report] == expected
    assert [f.granularity for f in report] == ["none", "tensor", "none", "none", "none", "none", "none"]


def test_reentrant_checkpoints_are_refused():
    class Reentrant(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=True)

    model = nn.Sequential(nn.Linear(6, 6), Reentrant(nn.Linear(6, 8), nn.LayerNorm(8)))
    with pytest.raises(psi.ProbeError, match="use_reentrant"):
        psi.find(model, torch.randn(4, 6))


class StraightThrough(torch.autograd.Function):
    """A threshold whose backward pass denies it."""

    @staticmethod
    def forward(ctx, x, low, high):
        return torch.where(x.abs() < low, 0.0, x.clamp(-high, high))

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


@pytest.mark.parametrize(("low", "high"), [(0.0, 30.0), (0.05, float("inf")), (0.0, float("inf"))])
def test_rescaling_tells_what_gradients_do_not_in_both_directions(low, high):
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            # A single row is scattered in one direction only, half of them up.
            self.rows = nn.ParameterList(nn.Parameter(torch.ones(1, 6)) for _ in range(6))

        def forward(self, x):
            y = torch.cat([StraightThrough.apply(x @ row.T, low, high) for row in self.rows], 1)
            return nn.functional.batch_norm(y, None, None, training=True)

    torch.manual_seed(0)
    found = {finding.granularity for finding in psi.find(Clamped(), torch.randn(8, 6))}
    assert found == {"row" if (low, high) == (0.0, float("inf")) else "none"}
