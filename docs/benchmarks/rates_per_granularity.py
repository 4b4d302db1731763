"""What a learning rate means: the best one per optimizer, manifold and granularity, on MNIST.

    .venv/bin/python docs/benchmarks/rates_per_granularity.py DATA

DATA holds MNIST's four .gz files. A 784-64-64-10 network with BatchNorm, 400 steps of 128 images, one seed; the two weights in
front of BatchNorm are declared, which is right for rows, for blocks of rows and for whole tensors alike, and everything else has
a fixed rate. Writes rates_per_granularity.json, and prints the tables of docs/training.md.
"""

import json
import sys
from pathlib import Path

import torch
from retract import declare, param_groups
from retract.manifolds import PSI, ProjectiveSpace, Rows, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from retract.psi.data import mnist
from torch import nn

STEPS, BATCH, SEEDS = 400, 128, range(1)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
REST = {RiemannianAdam: 1e-3, AdamG: 1e-3, RiemannianSGD: 0.1, PSISGD: 0.1, SGDG: 0.1}
"""Rates of the parameters that are not declared."""
BOTH, SQUARE = ("0.weight", "3.weight"), ("3.weight",)
GRANULARITIES = {"rows": Rows(), "4 blocks": Rows(blocks=4), "whole tensor": Rows.whole()}
CASES = [
    *((make, PSI(), cut, BOTH) for make in (RiemannianAdam, PSISGD) for cut in GRANULARITIES),
    *((make, Sphere(), cut, BOTH) for make in (RiemannianAdam, RiemannianSGD) for cut in ("rows", "whole tensor")),
    *((make, ProjectiveSpace(), "rows", BOTH) for make in (SGDG, AdamG)),
    *((make, Stiefel(), "one frame, 64 × 64", SQUARE) for make in (RiemannianAdam, RiemannianSGD)),
]
CONSTANT = [(make, PSI(), "rows", BOTH) for make in (RiemannianAdam, PSISGD)]


def network(seed):
    """Two hidden layers of 64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(784, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Linear(64, 10),
    )


def run(case, lr, seed, falls, data):
    """Percent right in eval mode at the end, and how far a step of the first tenth moved the last declared weight, relative
    to its norm."""
    make, manifold, cut, names = case
    model = network(seed)
    for name in names:
        declare(model, name, manifold, GRANULARITIES.get(cut, Rows()))
    optimizer = make(param_groups(model, manifold={"lr": lr}, euclidean={"lr": REST[make]}))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator, weight, moved = torch.Generator().manual_seed(seed), model.get_parameter(names[-1]), []
    for step in range(STEPS):
        batch = torch.randint(len(data.train_x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
        before = weight.detach().clone()
        optimizer.step()
        if step < STEPS // 10:
            moved.append(float((weight.detach() - before).norm() / before.norm()))
        if falls:
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(data.test_x).argmax(1) == data.test_y).double().mean()
    return 100 * float(right), sum(moved) / len(moved)


def measure(case, falls, data):
    """Means over the seeds, per rate."""
    found = {}
    for lr in RATES:
        pairs = [run(case, lr, seed, falls, data) for seed in SEEDS]
        found[lr] = [sum(values) / len(SEEDS) for values in zip(*pairs, strict=True)]
    make, manifold, cut, _ = case
    return {
        "optimizer": make.__name__,
        "manifold": repr(manifold),
        "points": cut,
        "schedule": "cosine" if falls else "constant",
        "accuracy": {f"{lr:g}": round(right, 2) for lr, (right, _) in found.items()},
        "moved": {f"{lr:g}": float(f"{moved:.2g}") for lr, (_, moved) in found.items()},
    }


def line(result):
    """A row of the table."""
    accuracy = result["accuracy"]
    best = max(accuracy, key=accuracy.get)
    good = [lr for lr, right in accuracy.items() if right >= accuracy[best] - 0.5]
    return (
        f"| `{result['optimizer']}` | `{result['manifold']}`, {result['points']} | {best} | {accuracy[best]:.1f} | "
        f"{good[0]} – {good[-1]} | {result['moved'][best]:.2g} | {accuracy['0.001']:.1f} |"
    )


def table(results, schedule):
    """The lines of the results with this schedule."""
    head = "| optimizer | points | best rate | accuracy, % | within half a point | moves by | at 0.001, % |"
    return "\n".join([head, "| --- " * 7 + "|", *(line(its) for its in results if its["schedule"] == schedule)])


def main(data):
    """Measures, writes and prints."""
    results = []
    for cases, falls in ((CASES, True), (CONSTANT, False)):
        for case in cases:
            results.append(measure(case, falls, data))
            print(line(results[-1]), file=sys.stderr, flush=True)
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(table(results, "cosine"), table(results, "constant"), sep="\n\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(mnist(Path(sys.argv[1])))
