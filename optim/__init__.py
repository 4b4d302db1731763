"""Update rules, their stages and motions, and the optimizers made of them."""

from .averaging import averaging
from .clip import clip_grad_norm_
from .general import RiemannianAdam, RiemannianSGD
from .groups import param_groups
from .optimizer import RiemannianOptimizer
from .presets import PSISGD, SGDG, AdamG
from .rules import Coefficients, Rule

__all__ = [
    "PSISGD",
    "SGDG",
    "AdamG",
    "Coefficients",
    "RiemannianAdam",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "Rule",
    "averaging",
    "clip_grad_norm_",
    "param_groups",
]
