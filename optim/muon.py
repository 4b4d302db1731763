"""Optimizers with steps of bounded spectral norm: `RiemannianSGD` with the shape ``"spectral"`` and other defaults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..manifolds import Euclidean
from .general import RiemannianSGD
from .presets import need_manifold
from .shapes import Spectral

__all__ = ["SPEL", "SSO", "ManifoldMuon", "Muon", "MuonH", "PSIMuon"]


class Muon(RiemannianSGD):
    """Muon (Jordan 2024), for matrices in flat space, n × p: outputs × inputs.

        b ← ρ b + (1 − ρ) g,    W ← (1 − η λ) W − η √max(1, n/p) msign(ρ b + (1 − ρ) g)

    As `torch.optim.Muon`, whose default rate is 1e-3 and whose decay is 0.1, but for the precision of the iteration: bfloat16
    there, here on a GPU only. A group without a manifold has matrices; stacks of matrices and the heads of a fused weight are
    declared, with ``Euclidean(2)`` and `Rows`. Everything else goes to another optimizer, such as torch.optim.AdamW.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> optimizer = retract.optim.Muon(layer.parameters(), lr=0.02)
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: matrices, groups of them, or ``retract.param_groups(model)``.
        lr: η, the length of a step in the spectral norm, but for the factor `adjust_lr_fn`.
        momentum: ρ in [0, 1).
        weight_decay: λ, decoupled; it is not multiplied by that factor.
        nesterov: False for msign(b).
        adjust_lr_fn: the factor; ``"match_rms_adamw"`` suits rates of AdamW. None: no factor, where torch's None is ``"original"``.
        options: as in `RiemannianSGD`; ``shape=Spectral(…)`` for another iteration.

    Raises:
        OptionError: an invalid option.
        GeometryError: a parameter that is no matrix.
    """

    flat = Euclidean(2)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        adjust_lr_fn: str | None = "original",
        **options: Any,
    ) -> None:
        options = {"momentum_form": "ema", "decoupled_weight_decay": True, "shape": "spectral", **options}
        options |= {"weight_decay": weight_decay, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, lr, momentum, **options)


class MuonH(RiemannianSGD):
    """MuonH (Wen et al. 2026, Hyperball), for PSI groups of whole matrices, or of blocks of one size.

        b ← ρ b + (1 − ρ) g,    W ← R N(W − η R N(msign(ρ b + (1 − ρ) g))),    R = ‖W₀‖,    N(X) = X/‖X‖

    The norm of a point is held after every step, also where the network depends on it. ``Rows(blocks=H)`` in the declaration
    gives every head or expert a radius of its own. The authors' code averages as heavy ball, which has the same direction, and
    clips the gradient before.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.PSI(), retract.manifolds.Rows.whole())
        >>> optimizer = retract.optim.MuonH(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the length of a step in units of R.
        momentum: ρ in [0, 1).
        nesterov: False for msign(b).
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 0.018, momentum: float = 0.95, nesterov: bool = True, **options: Any
    ) -> None:
        options = {"momentum_form": "ema", "tangent": "none", "transport": "none", **options}
        options = {"shape": ("spectral", "unit"), "nesterov": nesterov, **options}
        super().__init__(params, lr, momentum, **options)
        need_manifold(self)


class ManifoldMuon(RiemannianSGD):
    """Muon on the Stiefel manifold (Bernstein 2025, *Modular manifolds*), for `Stiefel` groups.

        W ← polar(W − η A),    A = argmax ⟨g, A⟩ over ‖A‖₂ ≤ 1, WᵀA + AᵀW = 0

    A is exact (`retract.optim.lmo`), where published solvers leave the tangent space by 4 % and depend on the scale of the loss.
    A weight with more inputs than outputs is declared with ``Rows.whole(columns=0)``: its rows are orthonormal.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(4, 8, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.Stiefel())
        >>> optimizer = retract.optim.ManifoldMuon(retract.param_groups(layer))
        >>> layer(torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the length of a step in the spectral norm; the source lets it fall to 0 linearly.
        momentum: ρ in [0, 1); the source has none.
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(self, params: Any, lr: float | Tensor = 0.1, momentum: float = 0.0, **options: Any) -> None:
        options = {"shape": Spectral("svd", exact=True), "motion": "polar", "transport": "project", **options}
        super().__init__(params, lr, momentum, **options)
        need_manifold(self)


class SPEL(RiemannianSGD):
    """SPEL (arXiv 2601.21487), for `Stiefel` groups.

        b ← ρ b + (1 − ρ) g,    W ← polar(W − η msign(P_W b))

    The average is of Euclidean gradients, and projected when it is used. The step is not projected again. NVIDIA's class leaves
    the projection P_W out, and has a weight decay, which has no meaning on Stiefel.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(4, 8, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.Stiefel())
        >>> optimizer = retract.optim.SPEL(retract.param_groups(layer))
        >>> layer(torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the length of a step in the spectral norm.
        momentum: ρ in [0, 1).
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(self, params: Any, lr: float | Tensor = 3e-4, momentum: float = 0.95, **options: Any) -> None:
        options = {"momentum_form": "ema", "tangent": "step", "transport": "none", **options}
        options = {"shape": "spectral", "motion": "polar", **options}
        super().__init__(params, lr, momentum, **options)
        need_manifold(self)


class SSO(RiemannianSGD):
    """SSO, steepest descent on spectral spheres (arXiv 2601.08393), for `SpectralSphere` groups; MuonSphere with `exact` False.

        b ← ρ b + (1 − ρ) g,    W ← R X/σ₁(X),    X = W − η R A,    R = σ₁(W)

    with A = argmax ⟨ρ b + (1 − ρ) g, A⟩ over ‖A‖₂ ≤ 1, ⟨u₁ v₁ᵀ, A⟩ = 0, or msign(ρ b + (1 − ρ) g). The authors' code returns to
    the sphere at the beginning of the next step, so that the loss sees matrices off it.

    Example:
        >>> import torch, retract
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> retract.declare(layer, "weight", retract.manifolds.SpectralSphere())
        >>> optimizer = retract.optim.SSO(retract.param_groups(layer))
        >>> layer(torch.randn(16, 8)).square().mean().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the length of a step in the spectral norm, in units of R.
        momentum: ρ in [0, 1).
        nesterov: False for b in place of ρ b + (1 − ρ) g.
        exact: whether A is tangent.
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.02,
        momentum: float = 0.9,
        nesterov: bool = True,
        *,
        exact: bool = True,
        **options: Any,
    ) -> None:
        options = {"momentum_form": "ema", "tangent": "none", "transport": "none", **options}
        options = {"shape": Spectral("polar_express", 8, exact=exact), "nesterov": nesterov, **options}
        super().__init__(params, lr, momentum, **options)
        need_manifold(self)


class PSIMuon(RiemannianSGD):
    """Muon in PSI's metric, for PSI groups whose points are the rows of matrices; intrinsic Muon (arXiv 2605.09238) for this metric.

    In the coordinates W = r V with unit rows V, one length r per row, and with P the projection of rows orthogonal to V,

        u ← ρ u − η γ,    γ = r² P ∂L/∂W,    W ← W + η r P msign((ρ u − η γ)/r),    u ← P u,

    and rows are held at their lengths. Networks whose rows are scaled train alike, where Muon and MuonH train them differently:
    in front of a normalization layer the invariance is per row.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
        >>> retract.declare(model, "0.weight", retract.manifolds.PSI())
        >>> optimizer = retract.optim.PSIMuon(retract.param_groups(model, euclidean={"shape": None}))
        >>> model(torch.randn(16, 4)).tanh().sum().backward()
        >>> optimizer.step()

    Args:
        params: groups, at least one of them on a manifold: ``retract.param_groups(model)``.
        lr: η, the length of a step in the spectral norm, for matrices with rows of length 1.
        momentum: ρ in [0, 1).
        nesterov: False for msign(u/r).
        options: as in `RiemannianSGD`.

    Raises:
        OptionError: no parameter is on a manifold, or an option is invalid.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 0.02, momentum: float = 0.95, nesterov: bool = True, **options: Any
    ) -> None:
        options = {"momentum_form": "velocity", "transport": "project", **options}
        options = {"shape": ("spectral", "tangent"), "nesterov": nesterov, **options}
        super().__init__(params, lr, momentum, **options)
        need_manifold(self)
