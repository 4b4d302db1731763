"""Update rules, their stages and motions, and the optimizers made of them."""

from .averaging import get_multi_avg_fn
from .clip import clip_riemannian_norm_
from .general import RiemannianAdam, RiemannianSGD
from .groups import param_groups
from .muon import SPEL, SSO, ManifoldMuon, Muon, MuonH, PSIMuon
from .optimizer import RiemannianOptimizer
from .presets import PSISGD, SGDG, AdamG
from .rules import Coefficients, Rule
from .shapes import Points, Row, Shape, Sign, Spectral, Tangent, Unit
from .solvers import (
    LBFGS,
    Armijo,
    ConjugateGradients,
    HagerZhang,
    OptimizeResult,
    Record,
    RiemannianLBFGS,
    Search,
    SteepestDescent,
    StrongWolfe,
    TrustRegions,
    minimize,
)
from .spheres import AdamH, HypersphericalDescent, Nero, ObliqueAdam, ObliqueSGD, Rotational, Scion

__all__ = [
    "LBFGS",
    "PSISGD",
    "SGDG",
    "SPEL",
    "SSO",
    "AdamG",
    "AdamH",
    "Armijo",
    "Coefficients",
    "ConjugateGradients",
    "HagerZhang",
    "HypersphericalDescent",
    "ManifoldMuon",
    "Muon",
    "MuonH",
    "Nero",
    "ObliqueAdam",
    "ObliqueSGD",
    "OptimizeResult",
    "PSIMuon",
    "Points",
    "Record",
    "RiemannianAdam",
    "RiemannianLBFGS",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "Rotational",
    "Row",
    "Rule",
    "Scion",
    "Search",
    "Shape",
    "Sign",
    "Spectral",
    "SteepestDescent",
    "StrongWolfe",
    "Tangent",
    "TrustRegions",
    "Unit",
    "clip_riemannian_norm_",
    "get_multi_avg_fn",
    "minimize",
    "param_groups",
]
