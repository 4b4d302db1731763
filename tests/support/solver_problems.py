"""Small problems with known optima, one per manifold, for tests of solvers."""

import geoopt
import torch
from retract.manifolds import PSI, Euclidean, FixedRank, Grassmann, ProjectiveSpace, Sphere, Stiefel, from_geoopt


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(n, seed=0):
    """A symmetric matrix with eigenvalues 1 … 3."""
    q = torch.linalg.qr(normal(n, n, seed=seed))[0]
    return q @ torch.diag(torch.linspace(1, 3, n, dtype=q.dtype)) @ q.mT


A = spread(8)
LOW = torch.linalg.eigvalsh(A)
P = normal(5, 2, seed=3) @ normal(2, 6, seed=4)


def completion(x):
    return (x[:5] @ x[5:].mT - P).square().sum()


PROBLEMS = {
    "flat": (Euclidean(1), lambda x: (x @ A @ x) - x.sum(), (8,), -0.25 * float(torch.linalg.inv(A).sum())),
    "sphere": (Sphere(), lambda x: x @ A @ x, (8,), float(LOW[0])),
    "lines": (ProjectiveSpace(), lambda x: x @ A @ x, (8,), float(LOW[0])),
    "psi": (PSI(), lambda x: (x @ A @ x) / (x @ x), (8,), float(LOW[0])),
    "stiefel": (Stiefel(), lambda x: (x.mT @ A @ x).trace(), (8, 2), float(LOW[:2].sum())),
    "grassmann": (Grassmann(2), lambda x: (x.mT @ A @ x).trace(), (8, 2), float(LOW[:2].sum())),
    "fixed-rank": (FixedRank(2, 5), completion, (11, 2), 0.0),
    "geoopt": (from_geoopt(geoopt.Sphere()), lambda x: x @ A @ x, (8,), float(LOW[0])),
}


def start(manifold, shape, dtype=torch.float64, seed=7):
    return manifold.random_point(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
