"""`psi.find` on random small networks, against rescaling every row, one at a time."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from retract import psi
from torch import nn

WIDTH = 4


class Sum(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Center(nn.Module):
    """Divides by the norm over channels, by hand and in float32, as language models do."""

    eps = 1e-8

    def forward(self, x):
        y = x.to(torch.float32)
        return (y / (y.square().mean(1, keepdim=True) + self.eps).sqrt()).to(x.dtype)


class Gain(nn.Module):
    """One factor per channel."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x):
        return self.weight[:, None] * x


LAYERS = {
    "conv": lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
    "conv without bias": lambda: nn.Conv1d(WIDTH, WIDTH, 1, bias=False),
    "depthwise": lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
    "transposed": lambda: nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1, bias=False),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "layer norm": lambda: nn.GroupNorm(1, WIDTH),
    "instance norm": lambda: nn.InstanceNorm1d(WIDTH),
    "norm by hand": Center,
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gain": Gain,
    "max": lambda: nn.MaxPool1d(3, 1, 1),
    "dropout": lambda: nn.Dropout(0.3),
    "average": lambda: nn.AvgPool1d(3, 1, 1),
}
stacks = st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5)
networks = st.lists(st.tuples(st.booleans(), stacks), min_size=1, max_size=3)


def build(plan, seed):
    """A network of stacks, each alone or in a residual sum, with a linear readout behind."""
    torch.manual_seed(seed)
    stages = []
    for residual, names in plan:
        stage = nn.Sequential(*(LAYERS[name]() for name in names))
        stages.append(Sum(stage) if residual else stage)
    return nn.Sequential(*stages, nn.Conv1d(WIDTH, 2, 1))


class BruteForce:
    """Outputs of the network in float64 with parts of it rescaled, at two inputs."""

    def __init__(self, model, x, *, eps=False):
        # What find takes as given: weights a little off their start, and norms whose eps does not show.
        model = copy.deepcopy(model)
        for module in model.modules():
            if hasattr(module, "eps") and not eps:
                module.eps = 1e-20  # smaller ones let a constant channel turn its rounding into a signal
        self.probe = psi.probe.Probe(model, (x,), {})
        self.bases = [self.probe.run(number)[0].detach() for number in range(2)]

    @torch.no_grad()
    def change(self, scaled, factor):
        """Of the outputs, when the slices `scaled` (name, index) are multiplied by `factor`."""
        for name, index in scaled:
            self.probe.weights[name][index] *= factor
        gaps = [float((self.probe.run(n)[0] - base).norm() / base.norm()) for n, base in enumerate(self.bases)]
        for name, index in scaled:
            self.probe.weights[name][index] /= factor
        return max(gaps)

    def survives(self, scaled):
        """Whether no factor that find tries changes the outputs: powers of two, which change no rounding."""
        return all(self.change(scaled, factor) <= 1e-5 for factor in (4.0, 32.0, 2.0**-5))

    def invariant(self, scaled):
        """Whether no factor does at all: find scales everything, so a clamp may show there at factors that are small."""
        return self.survives(scaled) and all(self.change(scaled, factor) <= 1e-5 for factor in (2.0**17, 2.0**-17))

    def influential(self, name, index):
        """Whether the slice matters at all, near where it is."""
        before = self.probe.weights[name][index].detach().clone()
        with torch.no_grad():
            self.probe.weights[name][index] += 1e-3 * torch.randn_like(before)
            gaps = [float((self.probe.run(n)[0] - base).norm() / base.norm()) for n, base in enumerate(self.bases)]
            self.probe.weights[name][index] = before
        return max(gaps) > 1e-9


def points(finding):
    """The slices that a finding says may be rescaled, one list per point."""
    path = finding.name.rpartition(".")[0]
    parts = [finding.name, *(f"{path}.{joined}" for joined in finding.joined)]
    size = finding.shape[finding.rows.axis]
    count = finding.rows.blocks or size
    step = size // count
    for i in range(count):
        index = slice(i * step, (i + 1) * step)
        yield [
            (part, (slice(None), index) if finding.rows.axis == 1 and part == finding.name else index) for part in parts
        ]


def check(plan, seed):
    model = build(plan, seed)
    x = torch.randn(5, WIDTH, 7)
    report = psi.find(model, x)
    brute = BruteForce(model, x)
    for f in report:
        if f.granularity != "none":
            for point in points(f):
                assert brute.survives(point), f"{f.name} {point} is not invariant\n{model}\n{report}"
            continue
        if len(f.shape) < 2:
            continue
        # No wrong misses: nothing finer or coarser may hold that was not found, alone or with the bias.
        bias = f.name.replace("weight", "bias")
        names = dict(model.named_parameters())
        variants = [[f.name]] + ([[f.name, bias]] if bias in names else [])
        for variant in variants:
            whole = [(name, slice(None)) for name in variant]
            if brute.invariant(whole) and f.reason.startswith("a norm's eps hides it"):
                shown = BruteForce(model, x, eps=True).change(whole, 2.0**-5)
                assert shown > 10 * brute.change(whole, 2.0**-5), f"eps hides nothing\n{model}\n{report}"
            elif brute.invariant(whole):
                assert not any(brute.influential(name, slice(None)) for name in [f.name]), (
                    f"{f.name} is invariant as a whole with {variant[1:]} and was missed\n{model}\n{report}"
                )
    # The finest granularity: where blocks or tensors were found and no row is dead, single rows must not hold.
    for f in report:
        if f.granularity in ("block", "tensor") and len(f.shape) > 1:
            parts = [f.name, *(f"{f.name.rpartition('.')[0]}.{joined}" for joined in f.joined)]
            single = [brute.survives([(part, slice(i, i + 1)) for part in parts]) for i in range(f.shape[0])]
            live = [brute.influential(f.name, slice(i, i + 1)) for i in range(f.shape[0])]
            assert not all(single) or not all(live), f"{f.name} holds per row\n{model}\n{report}"


@pytest.mark.long
@given(networks, st.integers(0, 2**16))
@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
def test_500_random_networks(plan, seed):
    check(plan, seed)
