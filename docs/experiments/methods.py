"""The methods that are compared: what each declares, its optimizer, and the rate it was published with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from retract import manifolds, optim
from retract.errors import RetractError
from retract.psi import declare
from torch import Tensor, nn

from .baselines import SGDP, AdamP

__all__ = ["METHODS", "Method", "build", "label"]

_Optimizer = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Method:
    """One row of the paper's tables."""

    title: str
    optimizer: _Optimizer
    """Called with parameters or groups, and `options`."""
    lr: float
    """Published: Table 3 of Yi (2022), or the method's own paper."""
    options: dict[str, Any]
    manifold: manifolds.Manifold | None = None
    """Of the scale-invariant weights; None where the method knows of none."""
    rest: dict[str, Any] = field(default_factory=dict)
    """Options of all other parameters, where there is a manifold."""


_SGD = {"momentum": 0.9}
_OTHERS = {"lr": 0.1, "momentum": 0.9, "momentum_form": "heavy_ball"}  # as SGD; Yi (2022) does not say
_OTHERS_OF_CHO_AND_LEE = {**_OTHERS, "lr": 0.01, "nesterov": True}
_OTHERS_BY_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps_form": "outside"}

METHODS = {
    "sgd": Method("SGD", torch.optim.SGD, 0.1, _SGD),
    "adam": Method("Adam", torch.optim.Adam, 1e-3, {}),
    "sgdg": Method("SGDG", optim.SGDG, 0.2, {}, manifolds.Grassmann(1), _OTHERS_OF_CHO_AND_LEE),
    "adamg": Method("Adam-G", optim.AdamG, 0.05, {}, manifolds.Grassmann(1), _OTHERS_BY_ADAM),
    "psi-sgd": Method("PSI-SGD", optim.PSISGD, 1.0, {}, manifolds.PSI(), _OTHERS),
    "psi-sgdm": Method("PSI-SGDM", optim.PSISGD, 0.1, _SGD, manifolds.PSI(), _OTHERS),
    "sgdp": Method("SGDP", SGDP, 0.1, _SGD),
    "adamp": Method("AdamP", AdamP, 1e-3, {}),
}


def label(method: str, lr: float, weight_decay: float, orthogonality: float) -> str:
    """For the name of a run's folder."""
    return method + f"-a{orthogonality:g}" * (orthogonality > 0) + f"-wd{weight_decay:g}-lr{lr:g}"


def build(
    model: nn.Module, example: Tensor, name: str, lr: float, weight_decay: float, orthogonality: float
) -> torch.optim.Optimizer:
    """The optimizer of the method `name` for `model`, whose weights are declared and put where the method needs them.

    What is scale-invariant is measured with the batch `example`, by `psi.declare`.

    Args:
        model: in train mode.
        example: one batch of inputs.
        name: of `METHODS`.
        lr: of the weights in front of normalization layers; of all parameters, where the method has no manifold.
        weight_decay: of all parameters; of those on no manifold, where the method has one.
        orthogonality: α of SGDG and Adam-G.

    Raises `RetractError` for a rate that is not positive, if the method has no use for `orthogonality`, and if a convolution
    turns out not to be scale-invariant per output channel, or to be so with more points: no network here allows for that.
    """
    method = METHODS[name]
    if not 0.0 < lr < float("inf"):
        raise RetractError(f"lr {lr:g}: a learning rate lies in (0, ∞)")
    options = {**method.options, "lr": lr}
    if isinstance(method.manifold, manifolds.ProjectiveSpace):
        options["orthogonality"] = orthogonality
    elif orthogonality:
        raise RetractError(
            f"orthogonality {orthogonality:g}: {method.title} has no such penalty; only SGDG and Adam-G do"
        )
    if method.manifold is None:
        return method.optimizer(model.parameters(), weight_decay=weight_decay, **options)
    for finding in declare(model, example, manifold=method.manifold):
        if len(finding.shape) == 4 and (finding.granularity, finding.rows) != ("row", manifolds.Rows()):
            raise RetractError(
                f"{finding.name} is not scale-invariant per output channel ({finding.granularity}, {finding.rows}: {finding.reason}). "
                "The paper's points are rows: take a network with BatchNorm behind its convolutions"
            )
    rest = {**method.rest, "weight_decay": weight_decay}
    return method.optimizer(optim.param_groups(model, euclidean=rest), **options)
