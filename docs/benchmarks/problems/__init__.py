"""Functions on manifolds with known minima: each problem is a function that returns f, a start and the optimum.

Needs torch and retract's manifolds only; copy the folder, or put the one that it is in on Python's path.
"""

from .eigen import brockett, dominant_subspace, generalized_eigen, pca, rayleigh, rayleigh_psi
from .low_rank import completion_fixed_rank, completion_grassmann, max_cut, robust_pca
from .points import frechet_mean, hyperbolic_mds, karcher_mean, rosenbrock, thomson
from .problem import Problem, polish
from .rotations import closest_rotations, ica, joint_diagonalization, procrustes, synchronization

LARGER = {
    rayleigh: {"n": 2000},
    dominant_subspace: {"n": 1000, "k": 20},
    pca: {"n": 1000, "k": 5, "samples": 1000},
    brockett: {"n": 1000, "k": 5},
    procrustes: {"n": 200},
    closest_rotations: {"n": 1000},
    joint_diagonalization: {"n": 100},
    completion_grassmann: {"n": 1000},
    max_cut: {"n": 1000},
    thomson: {"n": 240, "d": 8},
    karcher_mean: {"n": 50},
    frechet_mean: {"n": 1000},
    hyperbolic_mds: {"n": 200},
    synchronization: {"n": 1000},
    ica: {"n": 100, "samples": 2000},
    generalized_eigen: {"n": 1000, "k": 5},
    robust_pca: {"n": 500},
    rayleigh_psi: {"n": 2000},
    completion_fixed_rank: {"n": 1000},
    rosenbrock: {"n": 1000},
}
"""All problems, with the arguments of their larger sizes; the default ones are those of the functions."""

PROBLEMS = {make.__name__: make for make in LARGER}
"""All problems by the names of their functions."""

__all__ = ["LARGER", "PROBLEMS", "Problem", "polish", *PROBLEMS]
