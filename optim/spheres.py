"""Optimizers with steps of controlled length on spheres, and Scion: `RiemannianSGD` and `RiemannianAdam` with other defaults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..manifolds import Euclidean
from .general import RiemannianAdam, RiemannianSGD
from .options import valid
from .presets import need_manifold
from .rules import SteadyAdam

__all__ = ["AdamH", "HypersphericalDescent", "Nero", "ObliqueAdam", "ObliqueSGD", "Rotational", "Scion"]


class AdamH(RiemannianAdam):
    """AdamH (Wen et al. 2026, Hyperball), for PSI groups of whole tensors, or of blocks of one size.

        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²,    W ← R N(W − η R N(m̂/(√v̂ + ε))),    R = ‖W₀‖,    N(X) = X/‖X‖

    with one second moment per coordinate. The moments are of R g, so that the run does not depend on R; ε is in its units.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.PSI(), retract.manifolds.Rows.whole())
        >>> optimizer = retract.optim.AdamH(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the length of a step in units of R.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε ≥ 0.
        options: as in `RiemannianAdam`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.018,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        options = {"second_moment": "coordinate", "tangent": "none", "transport": "none", "shape": "unit", **options}
        super().__init__(params, lr, betas, eps, **options)
        need_manifold(self)


class HypersphericalDescent(RiemannianSGD):
    """Hyperspherical descent (Bernstein 2025, *Modular manifolds*), for Sphere or PSI groups of whole tensors or rows.

        a = g − W ⟨W, g⟩/‖W‖²,    W ← R N(W − η R a/‖a‖),    R = ‖W₀‖,    N(X) = X/‖X‖

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.Sphere(), retract.manifolds.Rows.whole())
        >>> optimizer = retract.optim.HypersphericalDescent(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the tangent of the angle of a step; the source lets it fall to 0 linearly.
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(self, params: Any, lr: float | Tensor = 0.1, **options: Any) -> None:
        options = {"shape": ("tangent", "unit"), **options}
        super().__init__(params, lr, **options)
        need_manifold(self)


class ObliqueSGD(RiemannianSGD):
    """SGD on the oblique manifold, as in NVIDIA's Emerging-Optimizers, for Sphere groups of rows.

        b ← ρ b + g,    w ← N(w − η (b − w ⟨w, b⟩)),    N(x) = x/‖x‖

    The buffer is of Euclidean gradients, and projected when it is used. That code normalizes columns of outputs × inputs by
    default; here the declaration says which rows are points.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.Sphere())
        >>> optimizer = retract.optim.ObliqueSGD(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η.
        momentum: ρ in [0, 1).
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, momentum: float = 0.9, **options: Any) -> None:
        options = {"tangent": "step", "transport": "none", **options}
        super().__init__(params, lr, momentum, **options)
        need_manifold(self)


class ObliqueAdam(RiemannianAdam):
    """Adam on the oblique manifold, as in NVIDIA's Emerging-Optimizers, for Sphere groups of rows.

        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²,    u = m̂/(√v̂ + ε),    w ← N(w − η (u − w ⟨w, u⟩)),    N(x) = x/‖x‖

    with one second moment per coordinate. That code divides √v by 1 − β₂ᵗ; here v̂ = v/(1 − β₂ᵗ), as in Adam.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.Sphere())
        >>> optimizer = retract.optim.ObliqueAdam(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε ≥ 0.
        options: as in `RiemannianAdam`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        options = {"second_moment": "coordinate", "tangent": "step", "transport": "none", **options}
        super().__init__(params, lr, betas, eps, **options)
        need_manifold(self)


class Nero(RiemannianAdam):
    """Nero (Liu et al. 2021), for groups of rows on `CenteredSphere`.

        v ← β v + (1 − β) ‖g‖²,    w ← N(C(w − η g/√v̂)),    v̂ = v/(1 − βᵗ),    C(x) = x − mean x,    N(x) = x/‖x‖

    with one second moment per row, of the Euclidean gradient.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.CenteredSphere())
        >>> optimizer = retract.optim.Nero(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η.
        beta: β in [0, 1).
        options: as in `RiemannianAdam`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(self, params: Any, lr: float | Tensor = 0.01, beta: float = 0.999, **options: Any) -> None:
        # The source has no ε, and takes 0/0 for 0.
        options = {"tangent": "none", "transport": "none", "eps": 1e-30, **options}
        super().__init__(params, lr, (0.0, beta), **options)
        need_manifold(self)


class Rotational(RiemannianAdam):
    """The rotational variant of AdamW (Kosson et al. 2024), for PSI groups of rows: every row turns by about η per step.

    With Adam's d = m̂/(√v̂ + ε), one second moment per coordinate, and P the projection orthogonal to w

        ν ← 0.9 ν + 0.1 ‖P d‖²,    w ← R N(w − η R P d/(√ν̂ + 1e-8)),    R = ‖w₀‖,    N(x) = x/‖x‖

    AdamW at rate α and decay λ turns the rows in front of a normalization layer by η = √(2 α λ (1 − β₁)/(1 + β₁)) in equilibrium
    (`angle`); the default is that of α = 1e-3, λ = 0.01. The authors' code also takes the mean off every row and its step.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
        >>> retract.declare(model, "0.weight", retract.manifolds.PSI())
        >>> angle = retract.optim.Rotational.angle(3e-3, 0.1)
        >>> optimizer = retract.optim.Rotational(retract.param_groups(model), lr=angle)
        >>> model(torch.randn(16, 4)).tanh().sum().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε ≥ 0.
        options: as in `RiemannianAdam`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    rule = SteadyAdam()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        lr = self.angle(1e-3, 1e-2, valid("betas", betas)[0]) if lr is None else lr
        options = {"tangent": "step", "transport": "none", **options}
        super().__init__(params, lr, betas, eps, **options)
        need_manifold(self)

    @staticmethod
    def angle(lr: float, weight_decay: float, beta1: float = 0.9) -> float:
        """√(2 α λ (1 − β₁)/(1 + β₁)): the angle in radians by which AdamW turns a row per step, in equilibrium.

        Args:
            lr: α, the rate of AdamW.
            weight_decay: λ, its decay.
            beta1: β₁.
        """
        return float((2.0 * lr * weight_decay * (1.0 - beta1) / (1.0 + beta1)) ** 0.5)


class Scion(RiemannianSGD):
    """Scion (Pethick et al. 2025), for matrices in flat space, n × p: outputs × inputs.

        b ← ρ b + (1 − ρ) g,    W ← (1 − η) W − η ϱ √(n/p) msign(b)

    which stays in the ball of radius ϱ √(n/p) of the spectral norm; ``weight_decay=0`` is the unconstrained variant. The authors
    write α = 1 − ρ = 0.1. For the last layer they take the sign with ϱ = 3000/p: a group with ``{"shape": "sign", "scale":
    3000 / p, "adjust_lr_fn": None}``. A group without a manifold has matrices, as in `Muon`.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> optimizer = retract.optim.Scion(layer.parameters())
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: matrices, groups of them, or ``retract.param_groups(model)``.
        lr: η.
        momentum: ρ in [0, 1).
        scale: ϱ.
        weight_decay: 1, or 0 for the unconstrained variant.
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: an invalid option.
        GeometryError: a parameter that is no matrix.
    """

    flat = Euclidean(2)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2.0**-12,
        momentum: float = 0.9,
        scale: float = 50.0,
        *,
        weight_decay: float = 1.0,
        **options: Any,
    ) -> None:
        options = {"momentum_form": "ema", "decoupled_weight_decay": True, "shape": "spectral", **options}
        options = {"adjust_lr_fn": "spectral_norm", "scale": scale, "weight_decay": weight_decay, **options}
        super().__init__(params, lr, momentum, **options)
