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
