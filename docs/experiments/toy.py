"""Figure 4 of Yi (UAI 2022): full-batch regression, and how small each method makes the gradient.

1,000 samples x ~ N(0, I₁₀), y = μᵀx + ε; f(x) = w₁ᵀ ELU(BN(W₂ x)) with 100 hidden units. Without BatchNorm, which the paper does
not mention here, nothing would be scale-invariant. Rows of W₂ start as in PyTorch, times √6 (He et al.), and times 10: one
function, three representatives. All in float64, with an eps of BatchNorm that leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from retract import manifolds, optim
from torch import Tensor, nn

__all__ = ["CRITERIA", "METHODS", "SCALES", "Config", "Run", "spread", "sweep", "train"]

_MOMENTUM = 0.9
METHODS = ("GD", "GDM", "Adam", "SGDG, α = 0", "SGDG, α = 0.1", "PSI-GD", "PSI-GDM")
SCALES = {"PyTorch": 1.0, "He": math.sqrt(6.0), "× 10": 10.0}
"""Factors of W₂. PyTorch's default has variance 1 / 3d, He's 2 / d."""


@dataclass(frozen=True)
class Config:
    """What is given; the paper leaves the noise open."""

    samples: int = 1_000
    inputs: int = 10
    hidden: int = 100
    noise: float = 0.1
    """Standard deviation of ε."""
    steps: int = 200
    eps: float = 1e-30
    seed: int = 0


@dataclass
class Run:
    """One method from one start with one pair of rates, before every step and after the last."""

    method: str
    scale: str
    lr: float
    lr_g: float
    loss: list[float]
    grad_w: list[float]
    """‖∇_W L‖, of W₂ as it is: it depends on the representative."""
    grad_v: list[float]
    """‖∇_V L‖, of its rows at unit norm: ‖w‖ times each row's gradient."""
    grad_g: list[float]
    """‖∇_g L‖, of everything else."""


def _last(values: list[float]) -> float:
    return values[-1] if math.isfinite(values[-1]) else math.inf


CRITERIA: dict[str, Callable[[Run], float]] = {
    "‖∇_V‖": lambda run: _last(run.grad_v),
    "loss": lambda run: _last(run.loss),
}
"""What a pair of rates is chosen by, after the last step: less is better."""


def train(method: str, scale: str, lr: float, lr_g: float, config: Config) -> Run:
    """`config.steps` steps on the whole batch."""
    torch.manual_seed(config.seed)
    x = torch.randn(config.samples, config.inputs, dtype=torch.float64)
    y = x @ torch.randn(config.inputs, 1, dtype=torch.float64)
    y = y + config.noise * torch.randn_like(y)
    model = nn.Sequential(
        nn.Linear(config.inputs, config.hidden, bias=False),
        nn.BatchNorm1d(config.hidden, eps=config.eps, track_running_stats=False),
        nn.ELU(),
        nn.Linear(config.hidden, 1, bias=False),
    ).double()
    w = model.get_parameter("0.weight")
    with torch.no_grad():
        w.mul_(SCALES[scale])
    others = [p for p in model.parameters() if p is not w]
    optimizer = _optimizer(method, w, others, lr, lr_g)
    traces = []
    for step in range(config.steps + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        with torch.no_grad():
            norms = torch.stack([w.norm(dim=1), w.grad.norm(dim=1)])  # type: ignore[union-attr]
            of_g = torch.stack([p.grad.norm() for p in others]).norm()  # type: ignore[union-attr]
            traces.append(torch.stack([loss, norms[1].norm(), norms.prod(0).norm(), of_g]))
        if step < config.steps:
            optimizer.step()
    return Run(method, scale, lr, lr_g, *torch.stack(traces).T.tolist())


def sweep(method: str, scale: str, config: Config, after_run: Callable[[Run], None]) -> list[Run]:
    """Runs at lr = 10^-3 … 10^2 times lr_g = 10^-3 … 1, and then at half decades around the best by ‖∇_V‖ and the best by
    loss, until each is better than all eight around it."""
    runs: dict[tuple[int, int], Run] = {}

    def at(places: Iterable[tuple[int, int]]) -> None:
        for place in places:
            if place not in runs:
                runs[place] = train(method, scale, 10.0 ** (place[0] / 2), 10.0 ** (place[1] / 2), config)
                after_run(runs[place])

    at(product(range(-6, 5, 2), range(-6, 1, 2)))
    count = 0
    while count < len(runs):
        count = len(runs)
        for key in CRITERIA.values():
            lr, lr_g = min(runs, key=lambda place: key(runs[place]))
            at(product(range(lr - 1, lr + 2), range(lr_g - 1, lr_g + 2)))
    return list(runs.values())


def spread(runs: Iterable[Run]) -> float:
    """Largest relative difference between the curves of loss, ‖∇_V‖ and ‖∇_g‖ of PSI runs that differ in nothing but their
    start; infinite where their rates differ too."""
    largest = 0.0
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        if run.method.startswith("PSI"):
            by_method.setdefault(run.method, []).append(run)
    for first, *others in by_method.values():
        for other in others:
            if (first.lr, first.lr_g) != (other.lr, other.lr_g):
                return math.inf
            for curve in ("loss", "grad_v", "grad_g"):
                a, b = (torch.tensor(getattr(run, curve), dtype=torch.float64) for run in (first, other))
                largest = max(largest, float(((a - b) / a).abs().max()))
    return largest


def _optimizer(method: str, w: Tensor, others: Sequence[Tensor], lr: float, lr_g: float) -> torch.optim.Optimizer:
    momentum = 0.0 if method in ("GD", "PSI-GD") else _MOMENTUM
    if method == "Adam":
        return torch.optim.Adam([{"params": [w], "lr": lr}, {"params": list(others), "lr": lr_g}])
    if not method.startswith(("SGDG", "PSI")):
        return torch.optim.SGD([{"params": [w], "lr": lr}, {"params": list(others), "lr": lr_g}], momentum=momentum)
    rest = {"params": list(others), "lr": lr_g, "momentum_form": "heavy_ball"}
    if method.startswith("PSI"):
        return optim.PSISGD([{"params": [w], "manifold": manifolds.PSI(), "lr": lr}, rest], momentum=momentum)
    line = manifolds.Grassmann(1)
    with torch.no_grad():
        w.copy_(line.nearest(w))
    orthogonality = 0.1 if method.endswith("0.1") else 0.0
    return optim.SGDG([{"params": [w], "manifold": line, "lr": lr}, rest], orthogonality=orthogonality)
