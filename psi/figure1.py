"""Figure 1 of Yi (UAI 2022): the same network from a balanced start and from a rescaled copy of it.

The rows of both weights are multiplied by a and 1/a in turn (T_a). The network computes the same function,
so an optimizer that respects the symmetry must train both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import manifolds, optim
from .data import Split
from .declare import declare
from .invariance import find
from .report import Report

__all__ = ["METHODS", "Config", "Outcome", "compare", "draw", "eps_leak", "invariance"]

METHODS = ("SGD", "SGDG", "PSI-SGD", "PSI-SGDM")
"""What can be compared."""
STARTS = ("balanced", "rescaled")
WEIGHTS = ("0.weight", "3.weight")
_DROP = 0.4  # the paper's figure drops the rate near epoch 80 of 200


@dataclass(frozen=True)
class Config:
    """What a comparison depends on, besides the data."""

    epochs: int = 40
    """The rate falls × 0.1 after two fifths of them."""
    scale: float = 2.0**13
    """a: rows are multiplied by a and 1/a in turn. At a power of two no rounding tells the two runs apart."""
    eps: float = 1e-30
    """Of the BatchNorm layers. At the default 1e-5 a row at 1e-4 is not scale-invariant."""
    lr: float = 0.1
    """Of all parameters."""
    momentum: float = 0.9
    """Of SGD, SGDG and PSI-SGDM."""
    batch: int = 128
    """Images of a step."""
    hidden: int = 100
    """Units of the hidden layer."""
    seed: int = 0
    """Of initialization and order."""


@dataclass
class Outcome:
    """One method from both starts."""

    method: str
    """One of `METHODS`."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """Training loss of every step, per start."""
    epoch_means: dict[str, list[float]] = field(default_factory=dict)
    """Their means over each epoch, per start."""
    accuracy: dict[str, float] = field(default_factory=dict)
    """Test accuracy in percent after the last epoch, in eval mode."""

    @property
    def bitwise_equal(self) -> bool:
        """Whether the two loss curves agree in every bit of every step."""
        return self.losses[STARTS[0]] == self.losses[STARTS[1]]

    @property
    def largest_difference(self) -> float:
        """Largest difference between the epoch means of the two curves; infinite if one is not finite."""
        a, b = (torch.tensor(self.epoch_means[start], dtype=torch.float64) for start in STARTS)
        return float((a - b).abs().nan_to_num(nan=torch.inf).max())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "bitwise_equal": self.bitwise_equal, "largest_difference": self.largest_difference}


def compare(
    method: str, data: Split, config: Config, after_epoch: Callable[[str, int, float], None] | None = None
) -> Outcome:
    """Train from both starts; ``after_epoch(start, epoch, mean loss)`` reports progress."""
    outcome = Outcome(method)
    for start in STARTS:
        model = _network(data, config)
        if method != "SGD":
            manifold: manifolds.Manifold = manifolds.Grassmann(1) if method == "SGDG" else manifolds.PSI()
            declare(model, data.train_x[: config.batch], manifold=manifold)
        if start == "rescaled":
            _rescale(model, config.scale)
            manifolds.project_(
                model
            )  # PSI leaves rows where they are; SGDG has to normalise them, so its starts are one point
        steps, means = _train(model, _optimizer(method, model, config), data, config, start, after_epoch)
        outcome.losses[start], outcome.epoch_means[start] = steps, means
        model.eval()
        with torch.no_grad():
            right = (model(data.test_x).argmax(1) == data.test_y).double().mean()
        outcome.accuracy[start] = 100.0 * float(right)
    return outcome


def draw(outcomes: Sequence[Outcome], config: Config) -> Any:
    """A matplotlib figure with a panel per method, two in a row: the loss from both starts over the epochs."""
    from matplotlib.figure import Figure

    rows, columns = -(-len(outcomes) // 2), min(2, len(outcomes))
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for unused in panels[len(outcomes) :]:
        unused.set_visible(False)
    looks: dict[str, dict[str, Any]] = {
        STARTS[0]: {"color": "#9ecae1", "linewidth": 5.0, "label": "balanced start"},
        STARTS[1]: {
            "color": "#d94801",
            "linewidth": 1.5,
            "linestyle": "--",
            "label": f"rows × {config.scale:g}, ÷ {config.scale:g}",
        },
    }
    for panel, outcome in zip(panels, outcomes, strict=False):
        for start in STARTS:
            means = outcome.epoch_means[start]
            panel.plot(range(1, len(means) + 1), means, **looks[start])
        verdict = "bitwise equal" if outcome.bitwise_equal else f"apart by {outcome.largest_difference:.2g}"
        panel.set_title(f"{outcome.method}\n{verdict}", fontsize=11)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle("The same function from two starts", fontsize=12)
    figure.supxlabel("epoch", fontsize=11)
    figure.supylabel("training loss (cross-entropy, nats)", fontsize=11)
    panels[0].legend(fontsize=9, loc="best")
    figure.tight_layout()
    return figure


def invariance(data: Split, config: Config) -> Report:
    """What is scale-invariant in the network, measured at the balanced start."""
    return find(_network(data, config), data.train_x[: config.batch])


def eps_leak(data: Split, config: Config) -> float:
    """How far eps breaks the invariance at the rescaled start: largest relative change of the outputs for the
    first batch, in float64. Without eps it would be rounding."""
    model, x = _network(data, config).double(), data.train_x[: config.batch].double()
    with torch.no_grad():
        balanced = model(x)
        _rescale(model, config.scale)
        return float((balanced - model(x)).abs().max() / balanced.abs().max())


def _network(data: Split, config: Config) -> nn.Sequential:
    """Linear–BN–ReLU–Linear–BN with rows of unit norm."""
    torch.manual_seed(config.seed)
    inputs, classes = data.train_x.shape[1], int(data.train_y.max()) + 1
    model = nn.Sequential(
        nn.Linear(inputs, config.hidden, bias=False),
        nn.BatchNorm1d(config.hidden, eps=config.eps),
        nn.ReLU(),
        nn.Linear(config.hidden, classes, bias=False),
        nn.BatchNorm1d(classes, eps=config.eps),
    )
    with torch.no_grad():
        for weight in map(model.get_parameter, WEIGHTS):
            weight.copy_(nn.functional.normalize(weight, dim=1))
    return model.to(data.train_x.device)


@torch.no_grad()
def _rescale(model: nn.Module, scale: float) -> None:
    """T_a: rows of both weights times a and 1/a in turn."""
    for weight in map(model.get_parameter, WEIGHTS):
        weight[0::2] *= scale
        weight[1::2] /= scale


def _optimizer(method: str, model: nn.Module, config: Config) -> torch.optim.Optimizer:
    if method == "SGD":
        return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    groups = optim.param_groups(model)
    if method == "SGDG":
        return optim.SGDG(groups, lr=config.lr, momentum=config.momentum)
    return optim.PSISGD(groups, lr=config.lr, momentum=config.momentum if method == "PSI-SGDM" else 0.0)


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    config: Config,
    start: str,
    after_epoch: Callable[[str, int, float], None] | None,
) -> tuple[list[float], list[float]]:
    """Losses per step and their means per epoch; both starts see the same batches in the same order."""
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, round(_DROP * config.epochs))], 0.1)
    shuffle = torch.Generator().manual_seed(config.seed)
    steps: list[float] = []
    means: list[float] = []
    model.train()
    for epoch in range(config.epochs):
        losses: list[Tensor] = []
        order = torch.randperm(len(data.train_x), generator=shuffle).to(data.train_x.device)
        for batch in order.split(config.batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        steps += torch.stack(losses).tolist()
        means.append(float(torch.stack(losses).double().mean()))
        schedule.step()
        if after_epoch is not None:
            after_epoch(start, epoch, means[-1])
    return steps, means
