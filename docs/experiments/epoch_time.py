"""Seconds per epoch, §6.2 of Yi (UAI 2022): a CIFAR ResNet under all methods, interleaved in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .methods import METHODS, build
from .resnet import cifar_resnet

__all__ = ["PUBLISHED", "Timing", "measure"]

PUBLISHED = {"sgd": 16.98, "adam": 18.1, "sgdg": 26.6, "psi-sgd": 18.2, "psi-sgdm": 18.5}
"""Seconds per epoch of ResNet-56 on CIFAR-10, on a V100."""
_IMAGES = 50_000


@dataclass
class Timing:
    """One method: seconds of every training step, and of the optimizer in it."""

    method: str
    batch: int
    steps: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)

    @property
    def epoch(self) -> float:
        """Seconds for 50,000 images, from the median step; without reading data or evaluation."""
        return statistics.median(self.steps) * _IMAGES / self.batch

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the steps, relative to their median."""
        low, middle, high = statistics.quantiles(self.steps, n=4)
        return (high - low) / 2 / middle

    @property
    def of_optimizer(self) -> float:
        """Milliseconds of the optimizer in a step, the median."""
        return 1e3 * statistics.median(self.optimizer)


def measure(
    methods: Sequence[str],
    depth: int,
    rounds: int,
    device: torch.device,
    after_step: Callable[[str], None],
    batch: int = 128,
    bf16: bool = False,
    orthogonality: float = 0.0,
) -> list[Timing]:
    """One training step of each method in turn, `rounds` times, after two to warm up; ``after_step(method)`` reports progress.

    Images are random numbers: time does not depend on them. On a GPU the optimizer is timed in rounds of its own, where the
    device is waited for on both sides of it; the steps of the other rounds are waited for at their end only.
    """
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(10, (batch,), device=device)
    runs = {}
    for method in methods:
        torch.manual_seed(0)
        model = cifar_resnet(depth, 10).to(device)
        alpha = orthogonality if method in ("sgdg", "adamg") else 0.0
        # A small rate: what is measured is time, and nothing may diverge.
        runs[method] = model, build(model, x[:8], method, 1e-3 * METHODS[method].lr, 0.0, alpha), Timing(method, batch)
    for turn in range(rounds + 2):
        for model, optimizer, timing in runs.values():
            for apart in (False, True) if device.type == "cuda" else (True,):
                start = _now(device)
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                middle = _now(device) if apart else start
                optimizer.step()
                end = _now(device)
                if turn >= 2:
                    if apart:
                        timing.optimizer.append(end - middle)
                    if not apart or device.type != "cuda":
                        timing.steps.append(end - start)
            after_step(timing.method)
    return [timing for *_, timing in runs.values()]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
