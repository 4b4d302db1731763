"""`psi.find` declares on evidence only: of every point, at the weights as they are, and of cuts from fine to coarse."""

import re

import pytest
import torch
from networks import normed_mlp
from retract import psi
from retract.manifolds import Rows
from torch import nn
from torch.nn import functional as F  # noqa: N812


def verdict(model, x, name="0.weight"):
    finding = next(f for f in psi.find(model, x) if f.name == name)
    return finding.granularity, finding.rows, finding.joined


def ratio(model, x, w):
    """Change of the output when a row or all rows of `w` are doubled, over its change by a random move of the same length, at most."""
    with torch.no_grad():
        own, base = w.clone(), model(x)
        worst = 0.0
        for rows in (slice(None), *range(len(w))):
            changes = []
            for move in (own[rows], *torch.randn(10, *own[rows].shape)):
                w[rows] += move * (own[rows].norm() / move.norm())
                changes.append(float((model(x) - base).norm()))
                w.copy_(own)
            worst = max(worst, changes[0] / torch.tensor(changes[1:]).mean().item())
    return worst


@pytest.mark.parametrize("std", [1e-5, 1e-3, 3e-2, 1.0])
def test_the_leak_is_that_of_the_weights_as_they_are(std):
    """A tiny layer makes the activations behind it tiny, though its norm has a bias that is zero now."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4, bias=False),
        )  # fmt: skip
        nn.init.normal_(model[0].weight, std=std)
        nn.init.normal_(model[3].weight, std=0.1)
        x = torch.randn(8, 3, 6, 6)
        report = psi.find(model, x)
        for finding, w in ((report[0], model[0].weight), (report[3], model[3].weight)):
            measured = ratio(model, x, w)
            if finding.granularity == "row":
                assert measured <= 0.01, f"{std}\n{report}"
            else:
                assert measured > 0.005, f"{std}\n{report}"
                assert finding.reason.startswith("the eps of a normalization layer hides it: ")


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(20), lambda: nn.RMSNorm(20, eps=1e-5)])
def test_a_leak_of_a_single_point_is_no_matter_of_luck(norm):
    for seed in range(12):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 20, bias=False), norm())
        with torch.no_grad():
            model[0].weight.mul_(1e-3)
        assert psi.find(model, torch.randn(64, 8))[0].reason.startswith("the eps of a normalization layer hides it: ")


def test_without_a_gradient_nothing_is_told():
    """BatchNorm makes ±1 of two values. The finest cut that happens to survive is no verdict."""
    for seed in range(8):
        torch.manual_seed(seed)
        for model, x in (
            (nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2)), torch.randn(2, 5)),
            (
                nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3)),
                torch.randn(2, 8, 1, 1),
            ),
        ):
            finding = psi.find(model, x)[0]
            assert finding.granularity == "none"
            assert re.match("cannot tell: BatchNorm sees two values per channel", finding.reason)
        # A row of one coordinate has no direction: its gradient is zero, whatever the inputs.
        model = nn.Sequential(nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))
        assert psi.find(model, torch.randn(4, 8, 5, 5))[0].reason.startswith("gradient is zero: cannot tell")


class Branch(nn.Module):
    """A branch behind a gain that is almost zero, of any shape."""

    def __init__(self, scale, shape):
        super().__init__()
        self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.full(shape, scale))

    def forward(self, x):
        return x + self.scale.flatten() * self.out(F.normalize(self.key(x), dim=-1))


def test_branches_behind_tiny_gains_of_any_shape():
    for scale in (1e-6, 1e-10, 0.0):
        for shape in ((8,), (1, 8), (8, 1, 1), (1,), ()):
            torch.manual_seed(0)
            model = nn.Sequential(Branch(scale, shape), nn.Linear(8, 4))
            nn.init.normal_(model[0].key.bias)
            found = verdict(model, torch.randn(32, 8), "0.key.weight")
            assert found == ("tensor", Rows.whole(), ("bias",)), (scale, shape)


class WinnerTakesAll(nn.Module):
    """The largest unit of a sample passes: invariant as a whole in front of BatchNorm."""

    def __init__(self, units):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, units, bias=False), nn.BatchNorm1d(units)

    def forward(self, x):
        h = self.linear(x)
        return self.norm(h * (h >= h.amax(1, keepdim=True)))


@pytest.mark.parametrize("units", [2, 3])
def test_points_are_rescaled_by_different_factors(units):
    for seed in range(10):
        torch.manual_seed(seed)
        assert psi.find(WinnerTakesAll(units), torch.randn(64, 4))[0].granularity != "row"


class Stacked(nn.Module):
    """Experts in one tensor, normalised per expert and channel."""

    def __init__(self, equation, shape):
        super().__init__()
        self.weight, self.equation = nn.Parameter(torch.randn(shape)), equation

    def forward(self, x):
        return F.batch_norm(torch.einsum(self.equation, self.weight, x).flatten(1), None, None, training=True)


def cuts_of_all_kinds():
    image, signal = torch.randn(6, 1, 6, 6), torch.randn(6, 8, 9)
    weight_norm = nn.utils.parametrizations.weight_norm
    yield "experts", Stacked("eoi,bi->beo", (3, 5, 4)), torch.randn(16, 4), "weight", Rows(dim=(0, 1))
    yield "experts, transposed", Stacked("eio,bi->beo", (3, 4, 5)), torch.randn(16, 4), "weight", Rows(dim=(0, 2))
    yield "gray", nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8)), image, "0.weight", Rows(blocks=4)
    depthwise = nn.Conv1d(8, 8, 3, groups=8, bias=False)
    yield "depthwise", nn.Sequential(depthwise, nn.GroupNorm(2, 8)), signal, "0.weight", Rows(blocks=2)
    transposed = nn.ConvTranspose1d(8, 16, 3, groups=8, bias=False)
    yield "one channel", nn.Sequential(transposed, nn.BatchNorm1d(16)), signal, "0.weight", Rows(dim=1, groups=8)
    net = nn.Sequential(weight_norm(nn.Conv1d(8, 8, 5), dim=2), nn.GELU())
    yield "positions", net, signal, "0.parametrizations.weight.original1", Rows(dim=2)


@pytest.mark.parametrize("case", range(6))
def test_cuts_from_fine_to_coarse(case):
    torch.manual_seed(case)
    kind, model, x, name, rows = list(cuts_of_all_kinds())[case]
    granularity, found, _ = verdict(model, x, name)
    assert found == rows, kind
    assert granularity == ("block" if rows.blocks else "row")


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(12, 3)), nn.Parameter(torch.randn(3, 8))
        self.bias = nn.Parameter(torch.randn(12))

    def forward(self, x):
        return F.linear(F.linear(x, self.down), self.up, self.bias)


def test_a_bias_belongs_to_the_points_of_one_weight():
    for norm in (nn.LayerNorm(12), nn.GroupNorm(3, 12)):
        report = {f.name: f for f in psi.find(nn.Sequential(LowRank(), norm), torch.randn(32, 8))}
        assert report["0.up"].joined == ("bias",)
        assert report["0.bias"].reason == "belongs to the points of 0.up"
        assert report["0.down"].reason == "scales only with bias, which belongs to the points of 0.up"


def found_in(depth):
    """The report on a network with so many ReLU6, after at most 40 passes, and 20 for pairs."""
    torch.manual_seed(0)
    layers, calls = [], []
    for _ in range(depth):
        layers += [nn.Conv1d(12, 12, 3, padding=1, bias=False), nn.BatchNorm1d(12), nn.ReLU6()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 9, 2))
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    report = psi.find(model, torch.randn(6, 12, 9))
    assert len(calls) <= 60
    return report


def test_never_more_than_60_passes():
    """Gains in front of ReLU6 pass for invariant until a value reaches 6."""
    report = found_in(12)
    assert [f.granularity for f in report if len(f.shape) == 3] == ["row"] * 12, f"\n{report}"


def test_a_deep_search_ends_with_its_passes():
    """Without the limit this network takes about a hundred; what is left open is not declared, at no coarser cut either."""
    for finding in found_in(30):
        if len(finding.shape) == 3:
            assert finding.granularity == "row" or finding.reason.startswith("cannot tell within"), finding


def test_a_point_that_is_doubled_speaks_for_itself():
    """Row 0 leaks and hardly matters to the output; row 1, which matters, does not clear it."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))
    with torch.no_grad():
        w = model[0].weight
        w.mul_((1e-5 / torch.tensor([[0.15], [0.012]])).sqrt() / w.norm(dim=1, keepdim=True))
        model[1].weight.copy_(torch.tensor([1e-3, 1.0]))
    finding = psi.find(model, torch.randn(64, 3))[0]
    assert finding.granularity == "none"
    assert "the eps of a normalization layer hides it" in finding.reason


def test_a_small_number_over_a_smaller_one_is_no_leak():
    """Three values in a channel leave BatchNorm one degree of freedom: derivatives are small in every direction."""
    layers = normed_mlp(1, 8, 6, 8, 1e-5, torch.float32)
    report = psi.find(nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3)), torch.randn(3, 6))
    assert [f.granularity for f in report if f.name in ("0.weight", "3.weight")] == ["row", "row"], f"\n{report}"


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.inner = nn.Linear(8, 8, bias=False), norm, nn.Linear(8, 8, bias=False)

    def forward(self, x):
        h = self.first(x)
        return self.norm(h + F.silu(self.inner(h)))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)])
def test_reasons_do_not_depend_on_how_a_norm_is_written(norm):
    report = psi.find(Residual(norm), torch.randn(16, 8))
    reasons = {f.name: f.reason for f in report}
    assert reasons["first.weight"] == "feeds a residual sum"
    assert reasons["inner.weight"] == "SiLU between weight and normalization layer"
    assert reasons["norm.weight"] == "not followed by a normalization layer"
