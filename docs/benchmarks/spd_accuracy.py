"""Errors of maps of symmetric positive definite matrices against 50 digits, as a Markdown table: python docs/benchmarks/spd_accuracy.py

This library, geoopt and pymanopt get the same 5 × 5 matrices, exact numbers of float64 or float32. Printed is the largest error over twenty
draws: of a distance relative to it, of an inner product relative to both lengths, of a tangent relative to its length in the metric, of a
point as the length of the difference in the metric there. pymanopt has no parallel transport.

"near" is a pair of points that differ by 1e-8 (float64) or 1e-6 (float32), "far" one of independent random points, "ill" one of independent
points of condition 1e6 or 1e3, "spread" the identity and a point of that condition.
"""

import geoopt
import mpmath
import pymanopt.manifolds
import torch
from retract.manifolds import SymmetricPositiveDefinite

OURS, GEOOPT, N = SymmetricPositiveDefinite(), geoopt.SymmetricPositiveDefinite(), 5
PYMANOPT = pymanopt.manifolds.SymmetricPositiveDefinite(N)
mpmath.mp.dps = 50


def exact(t):
    return mpmath.matrix(t.tolist())


def symmetric_function(a, f):
    values, vectors = mpmath.eigsy((a + a.T) / 2)
    return vectors * mpmath.diag([f(value) for value in values]) * vectors.T


class Exact:
    """The maps at `x` in 50 digits."""

    def __init__(self, x):
        self.x, self.lower = x, mpmath.cholesky(x)
        self.inverse = self.lower**-1

    def at_one(self, a):
        return self.inverse * a * self.inverse.T

    def back(self, a):
        return self.lower * a * self.lower.T

    def norm(self, u):
        return mpmath.mnorm(self.at_one(u), "f")

    def inner(self, u, v):
        first, second = self.at_one(u), self.at_one(v)
        return sum(first[i, j] * second[i, j] for i in range(N) for j in range(N))

    def log(self, y):
        return self.back(symmetric_function(self.at_one(y), mpmath.log))

    def exp(self, u):
        return self.back(symmetric_function(self.at_one(u), mpmath.exp))

    def retract(self, u):
        return self.x + u + u * self.inverse.T * self.inverse * u / 2

    def transport_to(self, y, v):
        turn = symmetric_function(self.at_one(y), mpmath.sqrt)
        return self.back(turn * self.at_one(v) * turn)


def library_maps(x, y, u, v):
    """Name and results of this library, of geoopt and of pymanopt."""
    a, b, c, d = (t.numpy() for t in (x, y, u, v))
    yield "dist", OURS.dist(x, y), GEOOPT.dist(x, y), PYMANOPT.dist(a, b)
    yield "log", OURS.log(x, y), GEOOPT.logmap(x, y), PYMANOPT.log(a, b)
    yield "exp", OURS.exp(x, u), GEOOPT.expmap(x, u), PYMANOPT.exp(a, c)
    yield "retract", OURS.retract(x, u), GEOOPT.retr(x, u), PYMANOPT.retraction(a, c)
    yield "inner", OURS.inner(x, u, v), GEOOPT.inner(x, u, v), PYMANOPT.inner_product(a, c, d)
    yield "transport_to", OURS.transport_to(x, y, v), GEOOPT.transp(x, y, v), None


def errors(x, y, u, v):
    """For each map the errors of the three libraries."""
    at, to, speed, other = Exact(exact(x)), exact(y), exact(u), exact(v)
    log, moved, retracted = at.log(to), at.exp(speed), at.retract(speed)
    exact_maps = {
        "dist": (at.norm(log), lambda gap: abs(gap) / at.norm(log)),
        "log": (log, lambda gap: at.norm(gap) / at.norm(log)),
        "exp": (moved, Exact(moved).norm),
        "retract": (retracted, Exact(retracted).norm),
        "inner": (at.inner(speed, other), lambda gap: abs(gap) / (at.norm(speed) * at.norm(other))),
        "transport_to": (at.transport_to(to, other), lambda gap: Exact(to).norm(gap) / at.norm(other)),
    }
    for name, *results in library_maps(x, y, u, v):
        right, size = exact_maps[name]
        found = [None if r is None else torch.as_tensor(r).squeeze() for r in results]
        yield name, [None if r is None else float(size((exact(r) if r.ndim else float(r)) - right)) for r in found]


def random_point(condition, generator):
    frame = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    exponents = torch.rand(N, generator=generator, dtype=torch.float64)
    exponents[:2] = torch.tensor([0.0, 1.0])
    return (frame * condition ** (exponents - 0.5)) @ frame.T


def pair(kind, dtype, generator):
    """Two points and two tangents of length 1 at the first, symmetric in every bit."""
    hard, step = (1e6, 1e-8) if dtype == torch.float64 else (1e3, 1e-6)
    x = {"near": lambda: random_point(10.0, generator), "far": lambda: random_point(10.0, generator)}.get(
        kind, lambda: random_point(hard, generator)
    )()
    if kind == "spread":
        x = torch.eye(N, dtype=torch.float64)
    u, v = (OURS.random_tangent(x, generator=generator) for _ in range(2))
    u, v = (a / OURS.norm(x, a) for a in (u, v))
    y = x + step * u if kind == "near" else random_point(10.0 if kind == "far" else hard, generator)
    return [a.to(dtype).tril() + a.to(dtype).tril(-1).T for a in (x, y, step * u if kind == "near" else u, v)]


def table(dtypes=(torch.float64, torch.float32), kinds=("near", "far", "ill", "spread"), draws=20):
    """(dtype, kind, map) → the largest error of each library."""
    worst = {}
    for dtype in dtypes:
        for kind in kinds:
            generator = torch.Generator().manual_seed(0)
            for _ in range(draws):
                for name, found in errors(*pair(kind, dtype, generator)):
                    known = worst.setdefault((str(dtype)[6:], kind, name), [None if e is None else 0.0 for e in found])
                    known[:] = [None if e is None else max(e, k) for e, k in zip(found, known, strict=True)]
    return worst


if __name__ == "__main__":
    print("| dtype | points | map | this library | geoopt | pymanopt |\n| --- | --- | --- | --- | --- | --- |")
    for row, found in table().items():
        print("|", " | ".join([*row, *("–" if e is None else f"{e:.0e}" for e in found)]), "|")
