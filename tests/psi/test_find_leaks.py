"""Leaks that derivatives, or the outputs in the model's dtype, tell wrongly on their own."""

import pytest
import torch
from random_networks import Gain, Sum
from retract import psi
from torch import nn
from torch.nn import functional as F  # noqa: N812

HIDDEN = "the eps of a normalization layer hides it: "


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7])
def test_what_rounding_hides_is_not_declared(scale):
    """Doubling the weight of the branch doubles the branch, though float32 does not see it beside the trunk."""
    torch.manual_seed(0)
    model = Sum(nn.Sequential(nn.Linear(6, 6, bias=False), nn.RMSNorm(6, eps=1e-5), Gain((6,), scale)))
    with torch.no_grad():
        model.inner[0].weight.mul_(1e-4)
    assert psi.find(model, torch.randn(32, 6))[0].reason.startswith(HIDDEN)


def test_what_shows_next_to_the_weights_clears_nothing_at_them():
    """In float64 a branch of 1e-11 is seen; next to the weights the gain in front is 1, and no eps matters."""
    torch.manual_seed(0)
    branches = [nn.Sequential(Gain((6,), 1e-13), nn.Linear(6, 6, bias=False), nn.LayerNorm(6)) for _ in range(2)]
    report = psi.find(nn.Sequential(*map(Sum, branches)).double(), torch.randn(32, 6).double())
    for finding in report:
        assert finding.granularity == "none" or "1.weight" not in finding.name, f"\n{report}"


class Mixed(nn.Module):
    """The first row is normalised over pairs of tokens, which leaves little more than a sign, the others over all."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        rows = (x @ self.weight.T).unbind(-1)
        whole = [F.layer_norm(h, h.shape, eps=1e-5) for h in rows]
        pairs = F.layer_norm(rows[0], (2,), eps=1e-5)
        return torch.stack((pairs + 0.1 * whole[0], whole[1], *(4 * h for h in whole[2:])))


def test_every_point_in_doubt_is_doubled():
    """Derivatives say more of the first row, of which hardly anything shows, than of the second, which leaks, but matters less to the
    outputs than all rows together."""
    for seed in range(6):
        torch.manual_seed(seed)
        model, x = Mixed(), torch.randn(16, 4)
        x = torch.stack((x, -x), 1)
        x[..., 0] += torch.tensor([3.0, -3.0])
        with torch.no_grad():
            model.weight[0] = torch.tensor([1.0, 0.1, 0.1, 0.1])
            h = x @ model.weight.T
            variance = h.square().mean((0, 1))
            model.weight.mul_((1e-5 / torch.tensor([0.001, 0.04, *4 * [1e-6]]) / variance).sqrt()[:, None])
        report = psi.find(model, x)
        assert report[0].reason.startswith(HIDDEN), f"{seed}\n{report}"


def test_luck_with_random_moves_declares_nothing():
    """What shows is 0.6 % to 0.75 % of a random move on average. A row of two coordinates can only turn one way, so that moves differ much, and
    of some it is more than 1 %."""
    declared = 0
    for seed in range(24):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)), torch.randn(64, 2)
        with torch.no_grad():
            variance = model[0](x).var(0, unbiased=False)
            model[0].weight.mul_((1e-5 / torch.tensor([0.015, 1e-6]) / variance).sqrt()[:, None])
        declared += psi.find(model, x)[0].granularity == "row"
    assert declared <= 2
