"""Time of one optimizer step in two versions of the package, in one run: did a change make it slower?

    git worktree add ../before COMMIT
    python docs/benchmarks/before_after.py ../before

Both versions are loaded into this process, under two names, and take turns step by step, so that both see the same machine.
The ratio of each pair of neighbours is taken, and the median of these printed, with the interval that holds it at 95 %.
"""

import argparse
import importlib
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from weights import LISTS, tensors

ROUNDS = {"ResNet-56": 401, "ResNet-50": 41, "30 matrices": 201}
PATHS = {"reference": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
MOMENTUM = {"lr": 1e-5, "momentum": 0.9}


def load(name, folder):
    """The package in `folder` as the module `name`; inside it imports are relative."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contenders(package):
    """{name: what makes its step from a list of parameters}, for one version of the package."""
    manifolds, optim = package.manifolds, package.optim

    def on(manifold, optimizer, **options):
        def make(params, **path):
            group = {"params": params} if manifold is None else {"params": params, "manifold": manifold}
            return optimizer([group], **options, **path).step

        return make

    return {
        "PSISGD": on(manifolds.PSI(), optim.PSISGD, **MOMENTUM),
        "RiemannianSGD, sphere": on(manifolds.Sphere(), optim.RiemannianSGD, **MOMENTUM),
        "SGDG": on(manifolds.Grassmann(1), optim.SGDG, lr=1e-5, orthogonality=0.0),
        "RiemannianAdam, PSI": on(manifolds.PSI(), optim.RiemannianAdam, lr=1e-5),
        "RiemannianSGD, PSI": on(manifolds.PSI(), optim.RiemannianSGD, **MOMENTUM),
        "RiemannianSGD, Euclidean": on(None, optim.RiemannianSGD, **MOMENTUM),
        "RiemannianSGD, Stiefel": on(manifolds.Stiefel(), optim.RiemannianSGD, **MOMENTUM),
        "RiemannianSGD, Grassmann(2)": on(manifolds.Grassmann(2), optim.RiemannianSGD, **MOMENTUM),
    }


def parameters(weights, grads):
    """Parameters with those gradients."""
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()
    return params


def cases(optimizers):
    """(list of weights, optimizer, path, weights, gradients)."""
    for network in ("ResNet-56", "ResNet-50"):
        weights, grads = tensors(LISTS[network])
        for optimizer in optimizers[:-2]:
            for path in PATHS:
                yield network, optimizer, path, weights, grads
    for optimizer, columns in zip(optimizers[-2:], (16, 2), strict=True):
        points = [torch.linalg.qr(torch.randn(n, columns))[0] for n in [64] * 20 + [128] * 10]
        yield "30 matrices", optimizer, "reference", points, [1e-3 * torch.randn_like(x) for x in points]


def compare(steps, rounds):
    """Median milliseconds of both, the median of their ratios, and the interval that holds that."""
    times = []
    for turn in range(rounds + 5):
        order = (0, 1) if turn % 2 else (1, 0)
        pair = [0.0, 0.0]
        for side in order:
            start = time.perf_counter()
            steps[side]()
            pair[side] = time.perf_counter() - start
        times.append(pair)
    before, after = (1e3 * statistics.median(column) for column in zip(*times[5:], strict=True))
    ratios = sorted(late / early for early, late in times[5:])
    middle, reach = len(ratios) // 2, math.ceil(0.98 * math.sqrt(len(ratios)))
    return before, after, ratios[middle], ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder of the other version")
    options = parser.parse_args()
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()  # what a kernel is kept as says the name of its package
    versions = load("before", options.before.resolve()), importlib.import_module("retract")
    print("| step | before, ms | after, ms | after / before | 95 % |\n| --- | --- | --- | --- | --- |")
    for network, optimizer, path, weights, grads in cases(list(contenders(versions[1]))):
        flags = PATHS[path] if network != "30 matrices" else {}
        steps = [contenders(version)[optimizer](parameters(weights, grads), **flags) for version in versions]
        before, after, ratio, low, high = compare(steps, ROUNDS[network])
        print(
            f"| {network}: {optimizer}, {path} | {before:.3f} | {after:.3f} | {ratio:.3f} | {low:.3f} – {high:.3f} |",
            flush=True,
        )
