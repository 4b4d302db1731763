"""Named optimizers: compositions of `RiemannianSGD` and `RiemannianAdam`, nothing more."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import OptionError
from .general import RiemannianAdam, RiemannianSGD
from .optimizer import RiemannianOptimizer

__all__ = ["PSISGD", "SGDG", "AdamG"]


class PSISGD(RiemannianSGD):
    """PSI-SGD, and with ``momentum`` PSI-SGDM (Yi 2022, eqs. 10, 11 and Algorithm 1), for PSI groups.

    The paper carries the buffer without transport (its Remark 2); ``"project"`` and ``"parallel"`` are exact
    alternatives. Further options are those of `RiemannianSGD`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        *,
        transport: str = "none",
        radius: str = "hold",
        **options: Any,
    ) -> None:
        options = {"momentum_form": "velocity", **options}
        super().__init__(params, lr, momentum, transport=transport, radius=radius, **options)
        _need_manifold(self)


class SGDG(RiemannianSGD):
    """SGD-G (Cho & Lee 2017, Algorithm 3), for ``Grassmann(1)`` groups. Further options: `RiemannianSGD`.

    The penalty is meant for tensors with fewer rows than coordinates per row; the authors leave the others out, since
    more rows than coordinates cannot be orthonormal. The paper trains the other parameters with η = 0.01 and Nesterov momentum:
    ``param_groups(model, euclidean={"lr": 0.01, "nesterov": True, "momentum_form": "heavy_ball"})``.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.2,
        momentum: float = 0.9,
        *,
        max_point_norm: float | None = 0.1,
        orthogonality: float = 0.1,
        **options: Any,
    ) -> None:
        options = {"momentum_form": "velocity", "motion": "exp", "transport": "parallel", **options}
        super().__init__(params, lr, momentum, max_point_norm=max_point_norm, orthogonality=orthogonality, **options)
        _need_manifold(self)


class AdamG(RiemannianAdam):
    """Adam-G (Cho & Lee 2017, Algorithm 4), for ``Grassmann(1)`` groups. Further options: `RiemannianAdam`."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.05,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        *,
        max_point_norm: float | None = 0.1,
        orthogonality: float = 0.1,
        **options: Any,
    ) -> None:
        options = {"eps_form": "inside", "motion": "exp", "transport": "parallel", **options}
        super().__init__(params, lr, betas, eps, max_point_norm=max_point_norm, orthogonality=orthogonality, **options)
        _need_manifold(self)


def _need_manifold(optimizer: RiemannianOptimizer) -> None:
    if not optimizer._names_manifold:
        raise OptionError(
            f"{type(optimizer).__name__} got no parameter on a manifold and would silently be its Euclidean namesake: "
            "declare weights with retract.declare and pass retract.param_groups(model), or name a manifold in a group. If "
            "psi.declare found none, its report says why"
        )
