"""Time of a step on hyperbolic rows, float32, against geoopt's optimizers; interleaved, medians, as Markdown.

    .venv/bin/python docs/benchmarks/hyperbolic_step_time.py [--rounds 15] [--maps]

geoopt's retraction of the ball and of the hyperboloid is x + u, projected, of first order; this library's is of second
order, and on the geodesic. With `--maps` steps take the reference path, which calls maps as geoopt does; otherwise a row kernel,
where Numba is installed.
"""

import argparse
from statistics import median
from time import perf_counter

import geoopt
import torch
from retract.manifolds import Lorentz, PoincareBall
from retract.optim import RiemannianAdam, RiemannianSGD

SIZES = ((10_000, 64), (100_000, 5))
MANIFOLDS = {"Lorentz": (Lorentz(), geoopt.Lorentz()), "PoincareBall": (PoincareBall(), geoopt.PoincareBall())}
OPTIMIZERS = {
    "RiemannianSGD": (RiemannianSGD, geoopt.optim.RiemannianSGD, {"lr": 1e-3, "momentum": 0.9}),
    "RiemannianAdam": (RiemannianAdam, geoopt.optim.RiemannianAdam, {"lr": 1e-3}),
}


def seconds(optimizer):
    start = perf_counter()
    optimizer.step()
    return perf_counter() - start


def pair(ours, theirs, options, manifold, other, size, path):
    """Both optimizers, each with the same points and gradients."""
    x = manifold.random_point(*size, generator=torch.Generator().manual_seed(0))
    w, p = torch.nn.Parameter(x.clone()), geoopt.ManifoldParameter(x.clone(), manifold=other)
    w.grad = 1e-2 * torch.randn(size, generator=torch.Generator().manual_seed(1))
    p.grad = w.grad.clone()
    return ours([{"params": [w], "manifold": manifold}], **path, **options), theirs([p], **options)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--maps", action="store_true")
    given = parser.parse_args()
    path = {"fused": False, "foreach": False} if given.maps else {}
    torch.set_num_threads(1)
    print("| rows | manifold | optimizer | ms | geoopt, ms | faster |\n| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        for name, (manifold, other) in MANIFOLDS.items():
            for title, (ours, theirs, options) in OPTIMIZERS.items():
                both = pair(ours, theirs, options, manifold, other, size, path)
                times = [[seconds(optimizer) for optimizer in both] for _ in range(given.rounds + 2)][2:]
                own, its = (median(column) for column in zip(*times, strict=True))
                ratio = median(b / a for a, b in times)
                rows = " × ".join(f"{n:,}" for n in size)
                print(f"| {rows} | {name} | {title} | {1e3 * own:.2f} | {1e3 * its:.2f} | {ratio:.1f} × |")


if __name__ == "__main__":
    main()
