"""What `psi.Monitor` costs, in shares of a training step of ResNet-20 at batch 128.

    .venv/bin/python docs/benchmarks/monitor.py

Optimizer steps with and without an observation alternate, on gradients that stay; medians, ± half the distance between the
quartiles.
"""

import statistics
import sys
import time
from pathlib import Path

import retract
import torch
from retract import psi
from retract.optim import PSISGD
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # where the package experiments is
from experiments.resnet import cifar_resnet

STEPS, ROUNDS, EVERY = 10, 200, 100


def told(times):
    """Milliseconds."""
    low, median, high = statistics.quantiles(times, n=4)
    return f"{1e3 * median:.2f} ms ± {500 * (high - low):.2f}"


def main():
    """Prints the outcome."""
    torch.manual_seed(0)
    model, x, y = cifar_resnet(20, 10), torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    psi.declare(model, x[:8])
    optimizer = PSISGD(retract.param_groups(model), lr=1e-3, momentum=0.9)
    training, steps = [], {True: [], False: []}
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        training.append(time.perf_counter() - start)
    monitor = psi.Monitor(model, optimizer, every=2)
    for number in range(2 * ROUNDS):
        start = time.perf_counter()
        optimizer.step()
        steps[number % 2 == 0].append(time.perf_counter() - start)
    assert len(monitor.observations) == ROUNDS
    print(f"training step {told(training)}; of it the optimizer {told(steps[False])}, observed {told(steps[True])}")
    extra = statistics.median(steps[True]) - statistics.median(steps[False])
    share = extra / statistics.median(training)
    print(f"an observation costs {share:.2%} of a training step; with every={EVERY}, {share / EVERY:.3%}")


if __name__ == "__main__":
    main()
