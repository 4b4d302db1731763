"""What `psi.Monitor` costs, in shares of a training step of ResNet-20 at batch 128.

    .venv/bin/python docs/benchmarks/monitor.py

Steps with and without an observation alternate; medians, and half the distance between the quartiles.
"""

import statistics
import time

import retract
import torch
from retract import psi
from retract.optim import PSISGD
from retract.psi.experiments.resnet import cifar_resnet
from torch import nn

ROUNDS = 15
EVERY = 100


def main():
    """Prints the outcome."""
    torch.manual_seed(0)
    model, x, y = cifar_resnet(20, 10), torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    psi.declare(model, x[:8])
    optimizer = PSISGD(retract.param_groups(model), lr=0.1, momentum=0.9)
    monitor = psi.Monitor(model, optimizer, every=2)
    times = {True: [], False: []}
    for number in range(2 * ROUNDS + 2):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        times[number % 2 == 0].append(time.perf_counter() - start)
    assert len(monitor.observations) == ROUNDS + 1
    seen, unseen = (statistics.quantiles(times[key][1:], n=4) for key in (True, False))  # without the first of each
    for name, (low, median, high) in (("observed", seen), ("not observed", unseen)):
        print(f"{name}: {1e3 * median:.0f} ms ± {500 * (high - low):.0f}")
    extra = seen[1] - unseen[1]
    print(f"with every={EVERY}: {extra / unseen[1] / EVERY:.2%} of a step; every step: {extra / unseen[1]:.1%}")


if __name__ == "__main__":
    main()
