"""Named optimizers: `RiemannianSGD` and `RiemannianAdam` with other defaults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import OptionError
from .general import RiemannianAdam, RiemannianSGD
from .optimizer import RiemannianOptimizer

__all__ = ["PSISGD", "SGDG", "AdamG", "need_manifold"]


class PSISGD(RiemannianSGD):
    """PSI-SGD, and with ``momentum`` PSI-SGDM (Yi 2022, eqs. 10, 11 and Algorithm 1), for PSI groups.

    The paper does not transport the buffer (Remark 2); ``"project"`` and ``"parallel"`` are exact alternatives. On PSI the
    Riemannian gradient is γ = ‖w‖² ∇L, and the steps are

        u ← ρ u − η γ,    w ← w + u.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
        >>> retract.declare(model, "0.weight", retract.manifolds.PSI())
        >>> optimizer = retract.optim.PSISGD(retract.param_groups(model), lr=0.1, momentum=0.9)
        >>> model(torch.randn(16, 4)).tanh().sum().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the tangent of the angle of a step per unit of gradient length.
        momentum: ρ in [0, 1).
        transport, radius, options: as in `RiemannianSGD`, with ``momentum_form="velocity"`` by default.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
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
        need_manifold(self)


class SGDG(RiemannianSGD):
    """SGD-G (Cho & Lee 2017, Algorithm 3), for ``Grassmann(1)`` groups.

    Steps go along geodesics, with the gradient g clipped to `max_point_norm` and parallel transport of the momentum:

        u ← ρ u − η g,    w ← cos ‖u‖ w + sin ‖u‖ u/‖u‖,    u ← cos ‖u‖ u − ‖u‖ sin ‖u‖ w.

    The penalty (α/2)‖Y Yᵀ − 1‖² between the rows Y of a tensor is meant for tensors with fewer rows than coordinates per row;
    the authors omit it for others, whose rows cannot be orthonormal. The paper trains the other parameters with η = 0.01 and
    Nesterov momentum: ``param_groups(model, euclidean={"lr": 0.01, "nesterov": True, "momentum_form": "heavy_ball"})``.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
        >>> retract.declare(model, "0.weight", retract.manifolds.Grassmann(1))
        >>> optimizer = retract.optim.SGDG(retract.param_groups(model, euclidean={"lr": 0.01}))
        >>> model(torch.randn(16, 4)).tanh().sum().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η.
        momentum: ρ in [0, 1).
        max_point_norm: largest length of a row's gradient; None for no clipping.
        orthogonality: α.
        options: as in `RiemannianSGD`, with ``momentum_form="velocity"``, ``motion="exp"`` and ``transport="parallel"`` by
            default.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
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
        need_manifold(self)


class AdamG(RiemannianAdam):
    """Adam-G (Cho & Lee 2017, Algorithm 4), for ``Grassmann(1)`` groups: one second moment v per row, ε under the root,

        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) ‖g‖²,    u = −η √(1 − β₂ᵗ)/(1 − β₁ᵗ) m/√(v + ε),

    and w moves along the geodesic of u, with parallel transport of m. The penalty is that of `SGDG`.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
        >>> retract.declare(model, "0.weight", retract.manifolds.Grassmann(1))
        >>> optimizer = retract.optim.AdamG(retract.param_groups(model))
        >>> model(torch.randn(16, 4)).tanh().sum().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε ≥ 0.
        max_point_norm, orthogonality: as in `SGDG`.
        options: as in `RiemannianAdam`, with ``eps_form="inside"``, ``motion="exp"`` and ``transport="parallel"`` by default.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

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
        need_manifold(self)


def need_manifold(optimizer: RiemannianOptimizer) -> None:
    """Raise `OptionError` if no parameter of `optimizer` is on a manifold."""
    if not optimizer._names_manifold:
        raise OptionError(
            f"{type(optimizer).__name__} got no parameter on a manifold, and would train all of them in flat space: declare "
            "weights with retract.declare and pass retract.param_groups(model), or set the manifold of a group. If psi.declare "
            "found none, its report says why"
        )
