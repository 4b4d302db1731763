"""ResNet-20 on CIFAR-10 under seven methods: a sweep of learning rates each, then runs at the chosen ones.

    .venv/bin/python docs/benchmarks/cifar.py DATA [SEEDS]

One run per core, each on one thread. Goes on where it was interrupted; finished runs in docs/benchmarks/cifar are read, not
repeated, so that more seeds can be added later. At the end it draws the curves of the first seed, cifar.png; the tables are
those of `.venv/bin/python docs/experiments table docs/benchmarks/cifar`.
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # where the package experiments is
from experiments import cifar, plots

HERE = Path(__file__).parent
OUT = HERE / "cifar"
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


def rate(config, data):
    """The best rate of the sweep for `config`."""
    trial = replace(config, images=10_000, epochs=5)
    return cifar.best(cifar.sweep(trial, cifar.load("cifar10", data), torch.device("cpu"), OUT, tell))


def run(config, data):
    """One run, as a record."""
    return cifar.train(config, cifar.load("cifar10", data), torch.device("cpu"), OUT, tell)


def main(data, seeds):
    """The sweeps, and the runs of each method once its rate is known."""
    cores, fresh = os.cpu_count(), get_context("spawn")
    with ProcessPoolExecutor(cores, fresh, torch.set_num_threads, (1,), max_tasks_per_child=1) as pool:
        study = [replace(config, channels_last=True, compile=True) for config in STUDY]
        sweeps = {pool.submit(rate, config, data): config for config in study}
        runs = []
        for done in as_completed(sweeps):
            chosen = replace(sweeps[done], lr=done.result(), epochs=10)
            runs += [pool.submit(run, replace(chosen, seed=seed), data) for seed in range(seeds)]
        records = [done.result() for done in as_completed(runs)]
    first = {(r.settings["method"], r.settings["weight_decay"]): r for r in records if r.settings["seed"] == 0}
    plots.training_curves([first[config.method, config.weight_decay] for config in STUDY], HERE / "cifar.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
