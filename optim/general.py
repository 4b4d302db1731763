"""The general optimizers: stochastic gradient descent and Adam on every manifold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import OptionError
from ..manifolds import Euclidean
from .execution.points import PointSet
from .optimizer import RiemannianOptimizer
from .options import COMMON, check_known
from .rules import Adam, CoordinateAdam, Momentum

__all__ = ["RiemannianAdam", "RiemannianSGD"]


FLAT_LR = 1e-3
"""Adam's default rate in flat space, torch's: the length of a step of a coordinate."""
ANGLE = 0.1
"""Adam's default rate on any other manifold: the angle of a step in radians (measured in docs/training.md)."""


class RiemannianSGD(RiemannianOptimizer):
    """Stochastic gradient descent with momentum on any manifold; equal to `torch.optim.SGD` on Euclidean groups.

    With the Riemannian gradient γ, momentum ρ, dampening τ, learning rate η, retraction R and vector transport T

        b ← ρ b + (1 − τ) γ,    x ← R(x, −η b),    b ← T(b),

    and for ``momentum_form="velocity"``  u ← ρ u − η (1 − τ) γ,  x ← R(x, u),  u ← T(u)  (Yi 2022, eq. 11).

    Example:
        >>> import torch
        >>> from retract.manifolds import Sphere
        >>> from retract.optim import RiemannianSGD
        >>> w = torch.nn.Parameter(Sphere().random_point(3, 5))  # three points
        >>> optimizer = RiemannianSGD([{"params": [w], "manifold": Sphere()}], lr=0.1, momentum=0.9)
        >>> (w @ torch.arange(5.0)).sum().backward()
        >>> optimizer.step()
        >>> bool(Sphere().point_defect(w.detach()).max() < 1e-6)
        True

    Args:
        params: parameters, groups, or ``retract.param_groups(model)``.
        lr: learning rate η, a number or a one-element tensor.
        momentum: ρ in [0, 1).
        dampening: τ, as in torch.
        weight_decay: L2 factor, on Euclidean groups only; on others it raises.
        nesterov: Nesterov momentum, as in torch.
        momentum_form: ``"heavy_ball"`` (torch: η outside the buffer), ``"velocity"`` (η inside) or ``"ema"``
            (torch.optim.Muon: b ← ρ b + (1 − ρ) γ).
        decoupled_weight_decay: on Euclidean groups, x ← (1 − η λ) x before the step in place of the L2 factor, as in AdamW.
        tangent: ``"gradient"``: the rule sees the Riemannian gradient. ``"step"``: it sees the Euclidean one, and its step is
            projected. ``"none"``: nothing is projected, and the motion alone brings the point back. The last two need
            ``transport="none"`` and coordinates that are orthonormal in the metric, unlike those of FixedRank and geoopt's manifolds.
        shape: the norm under which the step is steepest: None, ``"unit"``, ``"row"``, ``"sign"``, ``"spectral"``, ``"tangent"``,
            a `Shape`, or several of them in a tuple, one after the other. The learning rate is then the length of the step in that
            norm. On manifolds of vectors the matrices are the blocks of ``Rows(blocks=…)``, or all rows of a parameter together.
        scale: a factor of the shaped step.
        adjust_lr_fn: another, for n × p matrices: ``"original"`` √max(1, n/p) and ``"match_rms_adamw"`` 0.2 √max(n, p) as in
            torch.optim.Muon, or ``"spectral_norm"`` √(n/p).
        motion: ``"retract"``, ``"exp"``, or on embedded manifolds ``"polar"``, the point nearest to x + u.
        transport: the transport of the buffer: ``"manifold"`` (the manifold's transport after a retraction,
            parallel transport after an exponential), ``"project"``, ``"parallel"`` or ``"none"``.
        max_point_norm: largest length of a point's gradient in the metric, None for no clipping.
        orthogonality: α of the penalty between the rows of a tensor (Cho & Lee 2017), for unit directions.
        radius: on scaling quotients, ``"hold"`` keeps every row at the norm of its first step, a number at that norm, also
            when it is set in the middle of a run; ``"free"`` lets it grow and rescales it by powers of two.
        maximize, capturable, differentiable: as in torch.
        foreach, fused: fast paths; an explicit True raises where the path is not available.

    `tangent`, `max_point_norm`, `orthogonality`, `motion`, `transport` and `radius` have no meaning on Euclidean groups and are
    ignored there. Every option can be set per group.

    Raises:
        OptionError: an invalid option, or one that the manifold does not support.
        GeometryError: a parameter that does not fit its manifold, or is not on it.
    """

    rule = Momentum()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        momentum_form: str = "heavy_ball",
        decoupled_weight_decay: bool = False,
        tangent: str = "gradient",
        shape: Any = None,
        scale: float = 1.0,
        adjust_lr_fn: str | None = None,
        motion: str = "retract",
        transport: str = "manifold",
        max_point_norm: float | None = None,
        orthogonality: float = 0.0,
        radius: str | float = "hold",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, defaults)


class RiemannianAdam(RiemannianOptimizer):
    """Adam on any manifold, with one second moment per point; equal to `torch.optim.Adam` on ``Euclidean(0)``.

    The second moment of a point averages the squared length of its gradient, so a step is about `lr` long in the metric: on
    PSI, Sphere and ProjectiveSpace a point turns by about `lr` radians, whatever its dimension and the size of its gradient. A
    frame of p columns (Stiefel, Grassmann(p)) moves by `lr` as a whole, each column by about lr/√p.

    With the length ‖γ‖ of the Riemannian gradient of a point, step t, retraction R and vector transport T

        m ← β₁ m + (1 − β₁) γ,    v ← β₂ v + (1 − β₂) ‖γ‖²,
        x ← R(x, −η m̂ / (√v̂ + ε)),    m ← T(m),    m̂ = m / (1 − β₁ᵗ),    v̂ = v / (1 − β₂ᵗ)

    (Kingma & Ba 2015, Algorithm 1; on manifolds Bécigneul & Ganea 2019).

    Example:
        >>> import torch, retract
        >>> from retract.manifolds import PSI
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
        >>> retract.declare(model, "0.weight", PSI())
        >>> optimizer = retract.optim.RiemannianAdam(retract.param_groups(model))
        >>> [group["lr"] for group in optimizer.param_groups]  # radians on PSI, torch's rate for the rest
        [0.1, 0.001]

    Args:
        params: parameters, groups, or ``retract.param_groups(model)``.
        lr: learning rate, a number or a one-element tensor. None: torch's 0.001 for groups in flat space, where it is the step
            of a coordinate, and 0.1 for groups on any other manifold, where it is an angle. What is left of
            parameters that are cut into slices is in flat space. That suits a decreasing schedule;
            at a constant rate 0.03 is nearer to the best (docs/training.md, "Learning rates").
        betas: decay of the first and the second moment, each in [0, 1).
        eps: ε ≥ 0.
        weight_decay: L2 factor, on Euclidean groups only; on others it raises.
        eps_form: ``"outside"`` (√v̂ + ε, torch) or ``"inside"`` (√(v + ε), Adam-G).
        second_moment: ``"point"``, one per point, or ``"coordinate"``: one per coordinate, of the gradient in units of the point's
            size, and the step is projected.
        options: `decoupled_weight_decay`, `tangent`, `shape`, `scale`, `adjust_lr_fn`, `motion`, `transport`, `max_point_norm`,
            `orthogonality`, `radius`, `maximize`, `capturable`, `differentiable`, `foreach` and `fused`, as in `RiemannianSGD`.

    Raises:
        OptionError: an invalid option, or one that the manifold does not support; no `lr` for a group with parameters both in
            flat space and on other manifolds.
        GeometryError: a parameter that does not fit its manifold, or is not on it.
    """

    rule = Adam()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_form: str = "outside",
        second_moment: str = "point",
        **options: Any,
    ) -> None:
        if second_moment not in ("point", "coordinate"):
            raise OptionError(f"second_moment={second_moment!r} is not 'point' or 'coordinate'")
        if second_moment == "coordinate":
            self.rule = CoordinateAdam()
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "eps_form": eps_form}
        try:
            check_known(options, {**COMMON, **defaults})
        except OptionError as error:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument: {error}") from None
        super().__init__(params, {**defaults, **options})

    def _default_lr(self, points: Sequence[PointSet]) -> float | None:
        flat = [isinstance(point_set.manifold, Euclidean) for point_set in points]
        if any(flat) and not all(flat):
            raise OptionError(
                f"lr=None in a group with {points[flat.index(True)].name} in flat space and {points[flat.index(False)].name} on "
                f"{points[flat.index(False)].manifold!r}: rates mean different things there. Set lr, or put the parameters into "
                "separate groups, as retract.param_groups(model) does"
            )
        return FLAT_LR if all(flat) else ANGLE
