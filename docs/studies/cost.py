"""What a step of each method of a study costs: the methods in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .loop import Study
from .runs import method_in

__all__ = ["tell"]

_STEPS = 10
"""Of a method at a time."""


def tell(study: Study, folder: Path, rounds: int, tell: Callable[[str], None] = print) -> None:
    """Milliseconds of the processor per training step, medians over `rounds`, and their ratios to the baseline, as Markdown.

    The ratio is the median of those in each round, since the load of a machine changes between rounds.
    """
    methods = [found for name in study.methods if (found := method_in(study, name, folder)) is not None]
    trained = [(method.title, _training(study, method.optimizers, method.knobs)) for method in methods]
    for _, steps in trained:
        next(steps)
    times = [[next(steps) for _, steps in trained] for _ in range(rounds)]
    tell("| method | ms per step | relative |\n| --- | ---: | ---: |")
    for i, (title, _) in enumerate(trained):
        ratio = statistics.median(each[i] / each[0] for each in times)
        tell(f"| {title} | {1e3 * statistics.median(each[i] for each in times):.1f} | {ratio:.2f} |")


def _training(
    study: Study, make: Callable[..., list[torch.optim.Optimizer]], values: dict[str, float]
) -> Iterator[float]:
    """Seconds per step of ten steps of training, again and again."""
    torch.manual_seed(0)
    network = study.network()
    optimizers = make(network, study.example(), **values)
    batches = study.batches(torch.Generator().manual_seed(0))
    while True:
        start = time.process_time()
        for _ in range(_STEPS):
            loss = study.loss(network, *next(batches))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        yield (time.process_time() - start) / _STEPS
