"""ResNet-20 on CIFAR-10 under seven methods: a sweep of learning rates each, then runs at the chosen ones.

    .venv/bin/python docs/benchmarks/cifar.py DATA [SEEDS]

Goes on where it was interrupted; finished runs in docs/benchmarks/cifar are read, not repeated.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from retract.psi.experiments import cifar

HERE = Path(__file__).parent
STUDY = [
    cifar.Config(method="sgd"),
    cifar.Config(method="sgd", weight_decay=5e-4),
    cifar.Config(method="sgdg"),
    cifar.Config(method="psi-sgd"),
    cifar.Config(method="psi-sgdm"),
    cifar.Config(method="sgdp", weight_decay=1e-5),
    cifar.Config(method="adamp", weight_decay=1e-2),
]
"""SGDP and AdamP with the decay that their authors recommend."""


def tell(config, number, epoch):
    """One line per epoch."""
    print(
        f"{time.strftime('%H:%M:%S')} {config.name} {number}/{config.epochs}: loss {epoch.loss:.4f}, "
        f"accuracy {epoch.accuracy:.2f} %, {epoch.seconds:.0f} s",
        flush=True,
    )


def main(data, seeds):
    """Sweeps first, then the runs, seed by seed."""
    split, device = cifar.load("cifar10", data), torch.device("cpu")
    rates = {}
    for config in STUDY:
        trial = replace(config, images=10_000, epochs=5, channels_last=True)
        rates[config] = cifar.best(cifar.sweep(trial, split, device, HERE / "cifar", tell))
    for seed in range(seeds):
        for config in STUDY:
            run = replace(config, lr=rates[config], epochs=10, seed=seed, channels_last=True)
            cifar.train(run, split, device, HERE / "cifar", tell)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
