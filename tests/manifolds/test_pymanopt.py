"""exp, log, dist, retraction and transport against pymanopt, the reference for these geometries."""

import numpy as np
import pymanopt.manifolds as reference
import pytest
import torch
from retract.manifolds import Grassmann, ProjectiveSpace, Sphere, Stiefel

CASES = {
    "sphere": (Sphere(), reference.Sphere(7), (7,), 1.0),
    "lines": (ProjectiveSpace(), reference.Grassmann(7, 1), (7,), 0.5),
    "grassmann3": (Grassmann(3), reference.Grassmann(8, 3), (8, 3), 0.5),
    "stiefel": (Stiefel(), reference.Stiefel(8, 3), (8, 3), 1.0),
}


def numpy(t, column):
    array = t.numpy()
    return array[:, None] if column else array


@pytest.mark.parametrize("name", CASES)
def test_against_pymanopt(name):
    manifold, theirs, shape, length = CASES[name]
    column = name == "lines"
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = manifold.random_point(*shape, generator=generator, dtype=torch.float64)
        u, v = (manifold.random_tangent(x, generator=generator) for _ in range(2))
        u = u * (length / manifold.norm(x, u))
        y = manifold.exp(x, u)
        a = [numpy(t, column) for t in (x, u, v, y)]

        def same(ours, other):
            ours = numpy(ours, column)
            assert np.abs(ours - other).max() <= 1e-12 * max(1.0, np.abs(other).max())

        # pymanopt may pick another basis of the same subspace, so points of Grassmann are compared as x xᵀ.
        subspace = (lambda m: m @ m.T) if name in ("lines", "grassmann3") else (lambda m: m)
        assert np.abs(subspace(numpy(y, column)) - subspace(theirs.exp(a[0], a[1]))).max() <= 1e-12
        retracted = numpy(manifold.retract(x, u), column)
        assert np.abs(subspace(retracted) - subspace(theirs.retraction(a[0], a[1]))).max() <= 1e-12
        assert float(manifold.norm(x, u)) == pytest.approx(theirs.norm(a[0], a[1]), rel=1e-12)
        same(manifold.project(x, v + x), theirs.projection(a[0], a[2] + a[0]))
        same(manifold.project(y, v), theirs.transport(a[0], a[3], a[2]))
        if name != "stiefel":
            same(manifold.log(x, y), theirs.log(a[0], a[3]))
            assert abs(float(manifold.dist(x, y)) - theirs.dist(a[0], a[3])) <= 1e-12
