"""The problems of the suite at small sizes, each with a map from all arrays onto its points."""

import torch
from benchmarks.problems import PROBLEMS


def unit(a, x0):
    """Rows of length 1."""
    return a / a.norm(dim=-1, keepdim=True)


def frame(a, x0):
    """Orthonormal columns."""
    return torch.linalg.qr(a)[0]


def rotation(a, x0):
    """Rotations of the start."""
    return x0 @ torch.linalg.matrix_exp(a - a.mT)


def definite(a, x0):
    """Positive definite matrices."""
    return a @ a.mT


def hyperboloid(a, x0):
    """−x₀² + x₁² + … = −1; the first coordinate is not read."""
    space = a[..., 1:]
    return torch.cat([(1.0 + space.square().sum(-1, keepdim=True)).sqrt(), space], -1)


def flat(a, x0):
    """Arrays without a condition."""
    return a


# Small sizes, with a map from all arrays onto the points and an array that starts near x0.
SMALL = {
    "rayleigh": (unit, {"n": 12}),
    "rayleigh_psi": (flat, {"n": 12}),
    "dominant_subspace": (frame, {"n": 11, "k": 3}),
    "generalized_eigen": (frame, {"n": 12, "k": 2}),
    "pca": (frame, {"n": 9, "k": 2, "samples": 30}),
    "brockett": (frame, {"n": 9, "k": 3}),
    "procrustes": (rotation, {"n": 5}),
    "closest_rotations": (rotation, {"n": 6, "d": 4}),
    "synchronization": (rotation, {"n": 7, "degree": 4}),
    "joint_diagonalization": (rotation, {"n": 5, "matrices": 3}),
    "ica": (rotation, {"n": 4, "samples": 100}),
    "completion_grassmann": (frame, {"n": 20, "k": 2, "columns": 30, "observed": 0.6}),
    "completion_fixed_rank": (flat, {"n": 20, "m": 15, "k": 2, "observed": 0.7}),
    "robust_pca": (frame, {"n": 8, "k": 2}),
    "max_cut": (unit, {"n": 15, "degree": 6}),
    "karcher_mean": (definite, {"n": 3, "matrices": 5}),
    "frechet_mean": (hyperboloid, {"n": 3, "samples": 7}),
    "hyperbolic_mds": (hyperboloid, {"n": 8, "d": 3}),
    "thomson": (unit, {"n": 12}),
    "rosenbrock": (flat, {"n": 6}),
}


def small(name, **options):
    return PROBLEMS[name](**SMALL[name][1], **options)
