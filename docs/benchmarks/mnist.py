"""MNIST, 784-100-10 with BatchNorm: how far eval mode lags behind at high rates, and BatchNorm's own weights on PSI.

    .venv/bin/python docs/benchmarks/mnist.py DATA

DATA holds MNIST's four .gz files. Prints the tables of docs/measured.md.
"""

import copy
import sys
from pathlib import Path

import torch
from retract import declare, param_groups, psi
from retract.manifolds import PSI, Rows
from retract.optim import PSISGD
from retract.psi.data import mnist
from torch import nn

SEEDS = range(3)


def network(seed, share=0.1):
    """`share` is BatchNorm's momentum."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(784, 100, bias=False),
        nn.BatchNorm1d(100, momentum=share),
        nn.ReLU(),
        nn.Linear(100, 10, bias=False),
        nn.BatchNorm1d(10, momentum=share),
    )


def epochs(model, optimizer, data, count):
    """Trains; yields the mean loss after each epoch."""
    for _ in range(count):
        losses = []
        for batch in torch.randperm(len(data.train_x)).split(128):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        yield float(torch.stack(losses).mean())


@torch.no_grad()
def accuracy(model, data):
    """Percent right in eval mode."""
    model.eval()
    right = (model(data.test_x).argmax(1) == data.test_y).double().mean()
    model.train()
    return 100 * float(right)


def lag(seed, lr, radius, share, data):
    """Largest difference between eval mode and recalibrated statistics over five epochs, in points; plain SGD without `radius`."""
    model = network(seed, share)
    if radius:
        for name in ("0.weight", "3.weight"):
            declare(model, name, PSI())
        optimizer = PSISGD(param_groups(model), lr=lr, momentum=0.9, radius=radius)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    found = []
    for _ in epochs(model, optimizer, data, 5):
        twin = copy.deepcopy(model)
        psi.recalibrate(twin, data.train_x.split(128))
        found.append(abs(accuracy(model, data) - accuracy(twin, data)))
    return max(found)


def weights_of_norm(seed, on_psi, data):
    """Training loss of the fourth epoch, with weight and bias of the first BatchNorm as one point of PSI or not."""
    model = network(seed)
    psi.declare(model, data.train_x[:128])
    if on_psi:
        declare(model, "1.weight", PSI(), Rows.whole(), joined=("bias",))
    *_, last = epochs(model, PSISGD(param_groups(model), lr=0.1, momentum=0.9), data, 4)
    return last


def main(data):
    """Prints the smallest and the largest value over the seeds."""
    for name, radius, share, rates in (
        ("hold", "hold", 0.1, (0.1, 0.03, 0.01)),
        ("free", "free", 0.1, (0.1, 0.03, 0.01)),
        ("SGD", None, 0.1, (0.1, 0.03, 0.01)),
        ("hold, BatchNorm's momentum 0.02", "hold", 0.02, (0.1, 0.03, 0.01)),
    ):
        for lr in rates:
            found = [lag(seed, lr, radius, share, data) for seed in SEEDS]
            print(f"{name}, lr {lr:g}: {min(found):.1f} – {max(found):.1f} points", flush=True)
    for on_psi in (False, True):
        found = [weights_of_norm(seed, on_psi, data) for seed in SEEDS]
        print(
            f"weights of BatchNorm {'on PSI' if on_psi else 'Euclidean'}: loss {min(found):.3f} – {max(found):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main(mnist(Path(sys.argv[1])))
