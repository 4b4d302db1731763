"""Deterministic solvers: functions of points on manifolds, minimized to the last digits without a learning rate."""

from .algorithms import LBFGS, ConjugateGradients, SteepestDescent, TrustRegions
from .lbfgs import RiemannianLBFGS
from .minimize import minimize
from .progress import OptimizeResult, Record
from .searches import Armijo, HagerZhang, Search, StrongWolfe

__all__ = [
    "LBFGS",
    "Armijo",
    "ConjugateGradients",
    "HagerZhang",
    "OptimizeResult",
    "Record",
    "RiemannianLBFGS",
    "Search",
    "SteepestDescent",
    "StrongWolfe",
    "TrustRegions",
    "minimize",
]
