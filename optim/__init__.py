"""Update rules, their stages and motions, and the optimizers made of them."""

from .averaging import averaging
from .clip import clip_grad_norm_
from .groups import param_groups
from .optimizer import RiemannianAdam, RiemannianOptimizer, RiemannianSGD
from .presets import PSISGD, SGDG, AdamG

__all__ = [
    "PSISGD",
    "SGDG",
    "AdamG",
    "RiemannianAdam",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "averaging",
    "clip_grad_norm_",
    "param_groups",
]
