"""Deterministic solvers: functions of points on manifolds, minimized to the last digits without a learning rate."""

from .lbfgs import RiemannianLBFGS
from .methods import LBFGS, ConjugateGradients, SteepestDescent, TrustRegions
from .minimize import minimize
from .run import OptimizeResult, Record
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
