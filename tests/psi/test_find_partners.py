"""`psi.find` on parameters that cannot scale along, where leaks do not show at the weights, and on two points."""

import pytest
import torch
from networks import normed_mlp
from retract import psi
from torch import nn
from torch.nn import functional as F  # noqa: N812


class TiedBias(nn.Module):
    """A bias that the linear map holds, too."""

    def __init__(self):
        super().__init__()
        self.bias, self.decoder = nn.Parameter(torch.zeros(7)), nn.Linear(6, 7)
        self.decoder.bias = self.bias

    def forward(self, x):
        return self.decoder(x)


class Quantized(nn.Module):
    """An integer vector beside a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))
        self.zero = nn.Parameter(torch.zeros(6, dtype=torch.int32), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight) + self.zero


def test_what_is_not_measured_does_not_scale_along():
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    tied = psi.find(nn.Sequential(nn.Linear(5, 6, bias=False), nn.LayerNorm(6), TiedBias(), nn.LayerNorm(7)), x)
    assert tied[0].granularity == "tensor"
    assert not any("bias" in f.joined for f in tied if f.name.startswith("2."))
    integer = {f.name: f for f in psi.find(nn.Sequential(Quantized(), nn.LayerNorm(6)), x)}
    assert (integer["0.weight"].granularity, integer["0.weight"].joined) == ("tensor", ())
    assert integer["0.zero"].reason == "torch.int32 is not a real floating-point type"


class Opaque(nn.Module):
    """A module whose outputs are not all looked at."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 6, bias=False), nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(self.linear(x)), iter(())


def test_declaring_passes_notes_on():
    found, declared = psi.find(Opaque(), torch.randn(8, 5)), psi.declare(Opaque(), torch.randn(8, 5))
    assert declared.notes == found.notes
    assert declared.notes


def test_a_zero_bias_does_not_hide_that_activations_are_tiny():
    """Next to the weights the first norm's bias would be of unit size, and what is behind it as well."""
    model = normed_mlp(0, 8, 8, 8, 1e-5, torch.float32)
    nn.init.normal_(model[0].weight, std=1e-6)
    report = psi.find(model, torch.randn(32, 8))
    for at in (0, 3):
        assert report[at].reason.startswith("the eps of a normalization layer hides it: 8 of 8 rows leak"), (
            f"\n{report}"
        )


class Largest(nn.Module):
    """Which of its points is the largest decides for all."""

    def __init__(self, points):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, points, bias=False), nn.BatchNorm1d(points)

    def forward(self, x):
        return self.norm(self.linear(x)) * (1 + self.linear.weight.detach().norm(dim=1).argmax())


@pytest.mark.parametrize("points", [2, 12])
def test_points_get_factors_of_their_own(points):
    """No gradient tells, and no factor that all have in common; two points are doubled one by one, too."""
    for seed in range(4):
        torch.manual_seed(seed)
        assert psi.find(Largest(points), torch.randn(16, 4))[0].granularity != "row"
