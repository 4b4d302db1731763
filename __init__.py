"""Riemannian optimization for PyTorch, with the PSI manifold of scale-invariant weights.

Declare which parameters live on which manifold, hand them to an optimizer, swap the manifold without
touching anything else:

>>> import torch, retract
>>> from retract.manifolds import Sphere
>>> from retract.optim import RiemannianSGD
>>> model = torch.nn.Linear(8, 4)
>>> retract.declare(model, "weight", Sphere())
>>> optimizer = RiemannianSGD(retract.param_groups(model), lr=0.1, momentum=0.9)
>>> model(torch.randn(16, 8)).square().mean().backward()
>>> optimizer.step()
>>> bool(torch.allclose(model.weight.norm(dim=1), torch.ones(4)))
True
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from . import errors, manifolds, optim, psi
from .manifolds import ProjectiveSpace
from .manifolds.parameters.declare import declare, declared, project_, undeclare
from .optim.groups import param_groups

if TYPE_CHECKING:
    from . import testing

__version__ = "0.1.0"

__all__ = [
    "ProjectiveSpace",
    "__version__",
    "declare",
    "declared",
    "errors",
    "manifolds",
    "optim",
    "param_groups",
    "project_",
    "psi",
    "testing",
    "undeclare",
]


def __getattr__(name: str) -> ModuleType:
    """`testing`, which training has no use for, is imported when it is asked for."""
    if name == "testing":
        return import_module(".testing", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
