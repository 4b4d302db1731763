"""One run: the loop that all studies share."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from retract.errors import RetractError
from torch import Tensor, nn
from torch.optim import Optimizer

from .methods import Method

__all__ = ["FollowUp", "RateSweep", "Study", "train", "trained"]

_DIGITS = 6
"""Of the losses of a curve. The last one is stored to the bit."""

Batches = Iterator[tuple[Tensor, Tensor]]


class Study(Protocol):
    """What is trained, and on what."""

    name: str
    title: str
    methods: tuple[str, ...]
    """Names of the methods, the baseline first."""
    budget: int
    """Runs of a sweep for each knob that it is over."""
    swept: int | None
    """How many knobs it is over, `lr` and those that follow it in `protocol.FACTORS`; None for all that a method has."""
    points: int
    """At which the held-out loss is taken, the last at the end."""
    steps: int
    """Of a run; a multiple of `points`."""
    warm_up: int
    """Steps in which rates would rise linearly from 0 to their values. They rise until they meet the line on which they fall."""
    page: str
    """In docs/benchmarks, without its ending; it may have several studies."""
    pairs: tuple[tuple[str, str], ...]
    """Methods that are compared with another than the baseline, and with which."""
    scores: tuple[str, ...]
    """What is compared, of ``"accuracy"`` and ``"loss"``; the first orders the methods."""
    centre_of_rest: float | None
    """Centre of the grid of `rest`, alike for all methods; None for those in their files."""
    after: type[Study] | None
    """Another study, or None. After it the sweep is about what was chosen there, and there are no final runs; or, in a `FollowUp`,
    nothing but these."""

    def __init__(self, folder: Path) -> None:
        """Read the data from `folder`."""
        ...

    def network(self) -> nn.Module:
        """A new network in train mode, drawn from torch's global generator."""
        ...

    def example(self) -> Tensor:
        """A batch of inputs, for finding invariance."""
        ...

    def batches(self, generator: torch.Generator) -> Batches:
        """Inputs and targets to train on, without end."""
        ...

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The training loss of a batch."""
        ...

    def held_out(self, network: nn.Module) -> dict[str, float]:
        """``"loss"`` and whatever else is told, on data that is held out of training, of a network in eval mode."""
        ...

    def test(self, network: nn.Module) -> dict[str, float]:
        """The same on the test data."""
        ...


class FollowUp:
    """The base of a study without a sweep. Every method is run at what the study in `after` has chosen for it."""

    seeds: int
    """How many of the seeds of final runs are taken."""


class RateSweep:
    """The base of a study after another that sweeps `lr` alone."""

    budget = 9
    swept: int | None = 1


def train(study: Study, method: Method, values: Mapping[str, float], seed: int, final: bool) -> dict[str, Any]:
    """Train a network, with rates that fall linearly to zero after the warm-up; the record of the run, for a JSON file.

    `seed` decides initialization, order and augmentation, alike for all methods. Only a `final` run sees the test data, and nothing
    is chosen by them. A run whose loss is no number is ended, and has a loss of None. ``"seconds"`` are of the processor.

    Raises `RetractError` if the steps of `study` are not a multiple of its points: the last loss would not be that of the end.
    """
    if study.steps % study.points:
        raise RetractError(
            f"{study.name} has {study.steps} steps and {study.points} points, and the last one has to be at the end: make `steps` a "
            "multiple of `points`"
        )
    start = time.process_time()
    torch.manual_seed(seed)
    network = study.network()
    optimizers = method.optimizers(network, study.example(), **values)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    batches = study.batches(torch.Generator().manual_seed(seed))
    record: dict[str, Any] = {"loss": None, "curve": [], "train": []}
    total = torch.zeros(())
    for step, (x, y) in enumerate(itertools.islice(batches, study.steps)):
        for group, lr in groups:
            group["lr"] = lr * min((step + 1) / (study.warm_up + 1), 1.0 - step / study.steps)
        total += trained(study, network, optimizers, x, y)
        if (step + 1) % (study.steps // study.points) == 0:
            found = _evaluated(study.held_out, network)
            record["train"].append(_rounded(total.item() / (study.steps // study.points)))
            record["curve"].append(_rounded(found["loss"]))
            total.zero_()
            if None in (record["curve"][-1], record["train"][-1]):
                break
    else:
        record |= found
        if final:
            record |= {f"test {key}": value for key, value in _evaluated(study.test, network).items()}
    record["hash"] = _hashed(network)
    record["seconds"] = round(time.process_time() - start, 1)
    return record


def trained(study: Study, network: nn.Module, optimizers: Sequence[Optimizer], x: Tensor, y: Tensor) -> Tensor:
    """One step on a batch; the loss before it, without its graph."""
    loss = study.loss(network, x, y)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


@torch.no_grad()
def _evaluated(score: Callable[[nn.Module], dict[str, float]], network: nn.Module) -> dict[str, float]:
    network.eval()
    found = score(network)
    network.train()
    return found


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _hashed(network: nn.Module) -> str:
    """Of all parameters and buffers: equal for equal bits."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
