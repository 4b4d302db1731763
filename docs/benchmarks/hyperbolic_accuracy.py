"""Errors of hyperbolic maps near and far against 80 digits: retract, geoopt, pymanopt on the same inputs, as Markdown.

    .venv/bin/python docs/benchmarks/hyperbolic_accuracy.py [--samples 8]

x is at the distance r from the origin, y at the distance d from x in a random direction, u a tangent of length d, v one
of length 1. All are rounded to the dtype first, and exact results are those of the rounded numbers; on the hyperboloid
all coordinates but the first say which point it is. Errors: of `dist` and `norm` relative; of `log` and `transport_to`
the length of the difference in the metric, over that of the exact tangent; of `exp` the distance from the exact point.
Each is the worst of some samples. The last column is how far one rounding of its coordinates moves the farther one of x
and y, (ε/2) sinh r. A dash: a library has no such map. There is no row where x and y are the same floats, or too far
out for a ball of floats.
"""

import argparse
import math
import random

import geoopt
import mpmath as mp
import numpy as np
import pymanopt.manifolds
import torch
from retract.manifolds import Lorentz, PoincareBall

mp.mp.dps = 80
RADII, DISTANCES = (0.0, 1.0, 5.0, 10.0, 20.0), (1e-8, 1e-4, 1.0, 5.0, 20.0)
MAPS = ("dist", "norm", "log", "exp", "transport_to")
DIMENSION = 3
END = {torch.float64: 35.0, torch.float32: 15.0}
"""The distance from the origin to which balls of floats reach, in these tests."""
THEIRS = {"dist": "dist", "norm": "norm", "log": "logmap", "exp": "expmap", "transport_to": "transp"}
ORIGIN = [mp.mpf(1), *[mp.mpf(0)] * DIMENSION]


def minkowski(a, b):
    return mp.fdot(a[1:], b[1:]) - a[0] * b[0]


def combined(a, x, b, y):
    return [a * p + b * q for p, q in zip(x, y, strict=True)]


def length(u):
    return mp.sqrt(max(minkowski(u, u), mp.mpf(0)))


def dist(x, y):
    return 2 * mp.asinh(length(combined(1, x, -1, y)) / 2)


def exp(x, u):
    s = length(u)
    return combined(mp.cosh(s), x, mp.sinh(s) / s, u)


def log(x, y):
    s = dist(x, y)
    return combined(s / mp.sinh(s), y, -s / mp.tanh(s), x)


def transported(x, y, v):
    return combined(1, v, minkowski(y, v) / (1 - minkowski(x, y)), combined(1, x, 1, y))


class Sheet:
    """Numbers of the hyperboloid of curvature −1, and the exact points and tangents that they stand for."""

    def __init__(self):
        self.ours = Lorentz()
        self.others = {"geoopt": geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64))}

    def point(self, numbers):
        space = [mp.mpf(a) for a in numbers[1:]]
        return [mp.sqrt(1 + mp.fdot(space, space)), *space]

    def tangent(self, x, numbers):
        space = [mp.mpf(a) for a in numbers[1:]]
        return [mp.fdot(x[1:], space) / x[0], *space]

    def rounded_point(self, x, dtype):
        """The stored numbers of an exact point, with the first coordinate that belongs to the others."""
        return torch.tensor([float(a) for a in self.point(_rounded(x, dtype).tolist())], dtype=torch.float64).to(dtype)

    def rounded_tangent(self, x, u, dtype):
        return _rounded(self.tangent(x, _rounded(u, dtype).tolist()), dtype)


class Ball(Sheet):
    """Numbers of the ball; exact points and tangents are those of the hyperboloid, of which it is a picture."""

    def __init__(self):
        self.ours = PoincareBall()
        self.others = {
            "geoopt": geoopt.PoincareBall(c=torch.tensor(1.0, dtype=torch.float64)),
            "pymanopt": pymanopt.manifolds.PoincareBall(DIMENSION),
        }

    def point(self, numbers):
        p = [mp.mpf(a) for a in numbers]
        gap = 1 - mp.fdot(p, p)
        return [(2 - gap) / gap, *(2 * a / gap for a in p)]

    def tangent(self, x, numbers):
        p, u = [a / (1 + x[0]) for a in x[1:]], [mp.mpf(a) for a in numbers]
        scale = 2 / (1 - mp.fdot(p, p))
        time = scale**2 * mp.fdot(p, u)
        return [time, *combined(scale, u, time, p)]

    def rounded_point(self, x, dtype):
        return _rounded([a / (1 + x[0]) for a in x[1:]], dtype)

    def rounded_tangent(self, x, u, dtype):
        return _rounded([b / (1 + x[0]) - a * u[0] / (1 + x[0]) ** 2 for a, b in zip(x[1:], u[1:], strict=True)], dtype)


def _rounded(numbers, dtype):
    return torch.tensor([float(a) for a in numbers], dtype=torch.float64).to(dtype)


def called(library, manifold, name, x, u, y, v):
    """What a library's map gives, as numbers; None if it has none."""
    if name == "norm" and isinstance(manifold, geoopt.Lorentz):
        return [manifold.norm(u).item()]
    arguments = {"dist": (x, y), "norm": (x, u), "log": (x, y), "exp": (x, u), "transport_to": (x, y, v)}[name]
    if library != "pymanopt":
        found = getattr(manifold, name if library == "retract" else THEIRS[name])(*arguments)
        return found.reshape(-1).tolist()
    if name == "transport_to":
        return None
    with np.errstate(all="ignore"):
        return np.atleast_1d(getattr(manifold, name)(*(a.numpy() for a in arguments))).tolist()


def drawn(model, dtype, radius, distance, generator):
    """Stored x, u, y and v."""

    def direction():
        a = [mp.mpf(generator.gauss(0, 1)) for _ in range(DIMENSION)]
        return [b / mp.sqrt(mp.fdot(a, a)) for b in a]

    x = model.rounded_point(combined(mp.cosh(radius), ORIGIN, mp.sinh(radius), [mp.mpf(0), *direction()]), dtype)
    at = model.point(x.tolist())
    u, v = (transported(ORIGIN, at, [mp.mpf(0), *direction()]) for _ in range(2))
    u = [distance * a for a in u]
    return (
        x,
        model.rounded_tangent(at, u, dtype),
        model.rounded_point(exp(at, u), dtype),
        model.rounded_tangent(at, v, dtype),
    )


def exact(name, x, u, y, v):
    """What the map should give at exact points and tangents."""
    if name in ("dist", "log"):
        return dist(x, y) if name == "dist" else log(x, y)
    if name == "transport_to":
        return transported(x, y, v)
    return length(u) if name == "norm" else exp(x, u)


def error(model, name, found, right, x, y):
    """Of the numbers `found` against the exact result."""
    if not all(map(math.isfinite, found)):
        return math.inf
    if name in ("dist", "norm"):
        return float(abs(found[0] - right) / right)
    if name == "exp":
        outside = isinstance(model, Ball) and sum(mp.mpf(a) ** 2 for a in found) >= 1
        return math.inf if outside else float(dist(model.point(found), right))
    at = x if name == "log" else y
    return float(length(combined(1, model.tangent(at, found), -1, right)) / length(right))


def cell(model, dtype, radius, distance, name, samples):
    """By name, the worst error of each library and how far one "rounding" moves a point; None: no such points exist."""
    generator = random.Random(f"{radius} {distance}")
    libraries = {"retract": model.ours, **model.others}
    worst = dict.fromkeys([*libraries, "rounding"], 0.0)
    for _ in range(samples):
        x, u, y, v = drawn(model, dtype, radius, distance, generator)
        if isinstance(model, Ball) and radius + distance > END[dtype]:
            return None
        at, to = model.point(x.tolist()), model.point(y.tolist())
        if dist(at, to) == 0:
            return None
        tangent, other = model.tangent(at, u.tolist()), model.tangent(at, v.tolist())
        right = exact(name, at, tangent, to, other)
        for library, manifold in libraries.items():
            found = called(library, manifold, name, x, u, y, v)
            worst[library] = None if found is None else max(worst[library], error(model, name, found, right, at, to))
        far = max(length([0, *a[1:]]) for a in (at, to))
        worst["rounding"] = max(worst["rounding"], float(far) * torch.finfo(dtype).eps / 2)
    return worst


def table(model, dtype, samples, maps=MAPS):
    """Rows (map, r, d, errors by name)."""
    for name in maps:
        for radius in RADII:
            for distance in DISTANCES:
                errors = cell(model, dtype, radius, distance, name, samples)
                if errors is not None:
                    yield name, radius, distance, errors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=8)
    samples = parser.parse_args().samples
    for model in (Sheet(), Ball()):
        for dtype in (torch.float64, torch.float32):
            columns = ["retract", *model.others, "rounding"]
            print(
                f"\n{model.ours!r}, {str(dtype)[6:]}\n\n| map | r | d | {' | '.join(columns)} |\n"
                f"{'| --- ' * (3 + len(columns))}|"
            )
            for name, radius, distance, errors in table(model, dtype, samples):
                shown = ("–" if errors[c] is None else f"{errors[c]:.1e}" for c in columns)
                print(f"| {name} | {radius:g} | {distance:g} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
