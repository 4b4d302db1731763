"""Time of one optimizer step in two versions of the package, in one run: did a change make it slower?

    git worktree add ../before/retract COMMIT    # the root of the repository is the package, hence the name
    python docs/benchmarks/before_after.py ../before

Each version runs in a process of its own; they take turns, so that both see the same machine. The ratio of each pair of
neighbours is taken, and the median of these printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from weights import LISTS, tensors

HERE = Path(__file__).parent
STEPS = {"ResNet-56": 20, "ResNet-50": 3}
MATRICES = [(64, 16)] * 20 + [(128, 32)] * 10


def contenders():
    """{name: (step, how often it runs in a turn)}."""
    import torch
    from retract.manifolds import PSI, Grassmann, Sphere, Stiefel
    from retract.optim import PSISGD, SGDG, RiemannianAdam, RiemannianSGD

    common = {"lr": 1e-5, "momentum": 0.9}
    makes = {
        "PSISGD": lambda group, **path: PSISGD([{**group, "manifold": PSI()}], **common, **path),
        "RiemannianSGD, sphere": lambda group, **path: RiemannianSGD(
            [{**group, "manifold": Sphere()}], **common, **path
        ),
        "SGDG": lambda group, **path: SGDG([{**group, "manifold": Grassmann(1)}], lr=1e-5, orthogonality=0.0, **path),
        "RiemannianAdam, PSI": lambda group, **path: RiemannianAdam([{**group, "manifold": PSI()}], lr=1e-5, **path),
        "RiemannianSGD, Euclidean": lambda group, **path: RiemannianSGD([group], **common, **path),
    }
    paths = {"reference": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    work = {}
    for network, often in STEPS.items():
        for optimizer, make in makes.items():
            for path, flags in paths.items():
                step = make({"params": _parameters(*tensors(LISTS[network]))}, **flags).step
                work[f"{network}: {optimizer}, {path}"] = step, often
    for manifold in (Stiefel(), Grassmann(2)):
        shapes = MATRICES if manifold == Stiefel() else [(n, 2) for n, _ in MATRICES]
        points = [manifold.random_point(*shape) for shape in shapes]
        group = {"params": _parameters(points, [1e-3 * torch.randn_like(x) for x in points]), "manifold": manifold}
        work[f"{len(shapes)} matrices: RiemannianSGD, {manifold!r}, reference"] = (
            RiemannianSGD([group], **common).step,
            10,
        )
    return work


def _parameters(weights, grads):
    import torch

    params = [torch.nn.Parameter(w) for w in weights]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    return params


def serve():
    """Time what is asked for, one name a line, until the end of the input."""
    work = contenders()
    for step, _ in work.values():
        for _ in range(3):
            step()
    print("\n".join(work), end="\n\n", flush=True)
    for line in sys.stdin:
        step, often = work[line.strip()]
        start = time.perf_counter()
        for _ in range(often):
            step()
        print((time.perf_counter() - start) / often, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", help="the folder that holds the other version as its sub-folder retract")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    sides = []
    for folder in (options.before, None):
        path = {"PYTHONPATH": str(Path(folder).resolve())} if folder else {}
        sides.append(
            subprocess.Popen(
                [sys.executable, str(HERE / Path(__file__).name), "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **path},
            )
        )
    names, _ = (_names(side) for side in sides)
    print("| step | before, ms | after, ms | after / before |\n| --- | --- | --- | --- |")
    for name in names:
        times = [
            [_ask(side, name) for side in sides[:: 1 if turn % 2 else -1]][:: 1 if turn % 2 else -1]
            for turn in range(options.rounds)
        ]
        before, after = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(late / early for early, late in times)
        print(f"| {name} | {before:.3f} | {after:.3f} | {ratio:.3f} |", flush=True)
    for side in sides:
        side.communicate()
    return None


def _names(side):
    return [line.strip() for line in iter(side.stdout.readline, "\n")]


def _ask(side, name):
    side.stdin.write(f"{name}\n")
    side.stdin.flush()
    return float(side.stdout.readline())


if __name__ == "__main__":
    main()
