"""What a step of each method of a study costs: the methods in turn, in one process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from retract.errors import RetractError

from .loop import Study, trained
from .methods import Method
from .runs import method_in, methods_in

__all__ = ["generated"]

_STEPS = 10
"""Of a method at a time."""


def generated(study: Study, folder: Path, rounds: int) -> str:
    """Markdown: milliseconds of the processor per training step of every method, medians over `rounds`, and relative to the baseline.

    The ratio is the median of those in each round, since the load of a machine changes between rounds. A step includes its batch.
    Methods train at the centres of their knobs; `folder` has the results of the study, from which these follow where it comes after
    another. Raises `RetractError` if they are not known of the baseline.
    """
    if method_in(study, study.methods[0], folder) is None:
        raise RetractError(
            f"{study.methods[0]}, the baseline of {study.name}, has no setting yet: run the study before this one first"
        )
    methods = [found for name in methods_in(study, folder) if (found := method_in(study, name, folder)) is not None]
    training = [_training(study, method) for method in methods]
    for steps in training:
        next(steps)
    times = [[next(steps) for steps in training] for _ in range(rounds)]
    lines = ["| method | ms per step | relative |", "| --- | ---: | ---: |"]
    for i, method in enumerate(methods):
        ratio = statistics.median(each[i] / each[0] for each in times)
        lines.append(f"| {method.title} | {1e3 * statistics.median(each[i] for each in times):.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def _training(study: Study, method: Method) -> Iterator[float]:
    """Seconds per step of `_STEPS` steps of training, again and again."""
    torch.manual_seed(0)
    network = study.network()
    optimizers = method.optimizers(network, study.example(), **method.knobs)
    batches = study.batches(torch.Generator().manual_seed(0))
    while True:
        start = time.process_time()
        for x, y in itertools.islice(batches, _STEPS):
            trained(study, network, optimizers, x, y)
        yield (time.process_time() - start) / _STEPS
