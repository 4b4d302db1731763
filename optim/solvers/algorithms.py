"""The methods of `minimize`, as values: steepest descent, conjugate gradients, L-BFGS, trust regions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import OptionError
from .objective import State, Trial
from .pairs import Pairs
from .searches import HagerZhang, Search
from .space import Arrays, Space, combined

__all__ = [
    "LBFGS",
    "ConjugateGradients",
    "Directions",
    "LineSearchMethod",
    "SteepestDescent",
    "TrustRegions",
    "steepest",
]


class Directions(ABC):
    """The directions of one run."""

    def __init__(self, space: Space) -> None:
        self.space = space

    @abstractmethod
    def next(self, here: State) -> tuple[Arrays, float, float, float]:
        """The direction at `here`, its slope, its length, and the first guess for the step."""

    @abstractmethod
    def remember(self, here: State, d: Arrays, length: float, slope: float, trial: Trial) -> None:
        """A step from `here` along `d` of `length`, with the slope at its start, to the state of `trial`."""

    @abstractmethod
    def forget(self) -> bool:
        """Start anew from the gradient; whether there was something to forget."""


def steepest(here: State) -> tuple[Arrays, float, float]:
    """The negative gradient at `here`, its slope and its length."""
    return combined((-1.0, here.gradient)), -here.square, math.sqrt(here.square)


@dataclass(frozen=True)
class LineSearchMethod(ABC):
    """A method that searches along directions of descent.

    Args:
        search: how far to go, a `Search`.
    """

    search: Search = field(default_factory=HagerZhang)
    """The line search."""

    def __post_init__(self) -> None:
        if not isinstance(self.search, Search):
            raise OptionError(
                f"search={self.search!r} is not a Search, such as HagerZhang(), StrongWolfe() or Armijo()"
            )

    @abstractmethod
    def start(self, space: Space) -> Directions:
        """The directions of a run on `space`."""


class _Gradients(Directions):
    """Directions of which the last step is remembered: it scales the first guess for the next."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.last: tuple[float, float] | None = None

    def guess(self, slope: float, length: float) -> float:
        """The step that promises the same decrease as the last one (Nocedal & Wright 2006, §3.5); at first one of the length of the space's scale."""
        return self.space.scale / length if self.last is None else self.last[0] * self.last[1] / slope

    def next(self, here: State) -> tuple[Arrays, float, float, float]:
        d, slope, length = steepest(here)
        return d, slope, length, self.guess(slope, length)

    def remember(self, here: State, d: Arrays, length: float, slope: float, trial: Trial) -> None:
        self.last = trial.t, slope

    def forget(self) -> bool:
        known, self.last = self.last is not None, None
        return known


@dataclass(frozen=True)
class SteepestDescent(LineSearchMethod):
    """Steps along the negative gradient (Absil, Mahony & Sepulchre 2008, Algorithm 1).

    Example:
        >>> import torch
        >>> from retract.manifolds import Sphere
        >>> from retract.optim import SteepestDescent, minimize
        >>> x0 = torch.tensor([0.6, 0.8], dtype=torch.float64)
        >>> round(minimize(lambda x: x[0], x0, Sphere(), method=SteepestDescent()).fun, 9)
        -1.0
    """

    def start(self, space: Space) -> Directions:
        """As in `LineSearchMethod`."""
        return _Gradients(space)


# Without restarts conjugate gradients converge only linearly, on quadratic functions too (Crowder & Wolfe 1972).
_RESTART = 40

BETAS = ("fletcher_reeves", "polak_ribiere", "hestenes_stiefel", "hager_zhang")


class _Conjugate(_Gradients):
    def __init__(self, space: Space, beta: str) -> None:
        super().__init__(space)
        self.beta = beta
        self.before: tuple[Arrays, Arrays, float] | None = None
        self.conjugated = 0
        """Directions since the last one of steepest descent."""

    def next(self, here: State) -> tuple[Arrays, float, float, float]:
        if self.before is None:
            return super().next(here)
        assert self.last is not None
        (d, former, square), (t, before), gg = self.before, self.last, here.square
        change = [g - a for g, a in zip(here.gradient, former, strict=True)]
        vectors = [torch.stack(arrays) for arrays in zip(d, change, here.gradient, strict=True)]
        products = [self.space.products(here.x, vectors, one) for one in (d, change)]
        dd, dy, dg, _, yy, yg = torch.cat(products).tolist()
        if self.conjugated == _RESTART or dy == 0.0:
            beta = 0.0
        elif self.beta == "fletcher_reeves":
            beta = gg / square
        elif self.beta == "polak_ribiere":
            beta = max(0.0, yg / square)
        elif self.beta == "hestenes_stiefel":
            beta = max(0.0, yg / dy)
        else:  # Hager & Zhang 2005, eq. 1.3, with the bound of Hager & Zhang 2013, which has no unit
            beta = max((yg - 2.0 * dg * yy / dy) / dy, 0.4 * before / dd)
        slope, length = beta * dg - gg, math.sqrt(max(gg + beta * (beta * dd - 2.0 * dg), 0.0))
        if not slope < -1e-10 * length * math.sqrt(gg):
            beta, slope, length = 0.0, -gg, math.sqrt(gg)
        self.conjugated = self.conjugated + 1 if beta else 0
        # The minimizer of the quadratic function with t H d = y, and with ⟨g, H g⟩/‖g‖² = ‖y‖²/⟨t d, y⟩, as in the direction of y.
        bend = gg * yy / dy - 2.0 * beta * yg + beta * beta * dy if dy > 0.0 else 0.0
        guess = -slope * t / bend if bend > 0.0 else self.guess(slope, length)
        return combined((beta, d), (-1.0, here.gradient)), slope, length, guess

    def remember(self, here: State, d: Arrays, length: float, slope: float, trial: Trial) -> None:
        super().remember(here, d, length, slope, trial)
        assert trial.state is not None
        both = [torch.stack(arrays) for arrays in zip(d, here.gradient, strict=True)]
        carried = self.space.carried(here.x, [trial.t * a for a in d], trial.state.x, both)
        self.before = [a[0] for a in carried], [a[1] for a in carried], here.square

    def forget(self) -> bool:
        self.before = None
        return super().forget()


@dataclass(frozen=True)
class ConjugateGradients(LineSearchMethod):
    """Nonlinear conjugate gradients, d ← −g + β T(d), with T the transport of the manifold (Absil, Mahony & Sepulchre 2008, §8.3; Sato
    2022). A direction that does not descend is replaced by −g, and so is every 41st one.

    With y = g − T(g₋) of the last gradient g₋, β is ‖g‖²/‖g₋‖² (``"fletcher_reeves"``), max(0, ⟨g, y⟩/‖g₋‖²) (``"polak_ribiere"``, its
    variant PR+), max(0, ⟨g, y⟩/⟨d, y⟩) (``"hestenes_stiefel"``) or ⟨y − 2 d ‖y‖²/⟨d, y⟩, g⟩/⟨d, y⟩ (``"hager_zhang"``, at least
    0.4 ⟨d, g₋⟩/‖d‖²; Hager & Zhang 2005, 2013).

    Example:
        >>> from retract.optim import ConjugateGradients
        >>> ConjugateGradients(beta="polak_ribiere").beta
        'polak_ribiere'

    Args:
        search: the line search.
        beta: one of these four names.
    """

    beta: str = "hager_zhang"
    """The formula for β."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta not in BETAS:
            raise OptionError(f"beta={self.beta!r} is not one of {', '.join(map(repr, BETAS))}")

    def start(self, space: Space) -> Directions:
        """As in `LineSearchMethod`."""
        return _Conjugate(space, self.beta)


class _LimitedMemory(_Gradients):
    def __init__(self, space: Space, memory: int, caution: float) -> None:
        super().__init__(space)
        self.pairs = Pairs(space, memory, lambda sy, ss, square: sy > caution / space.scale * math.sqrt(square) * ss)

    def next(self, here: State) -> tuple[Arrays, float, float, float]:
        found = self.pairs.direction(here.x, here.gradient, here.square)
        if found is not None and found[1] < 0:
            return *found, 1.0
        self.pairs.forget()
        return super().next(here)

    def remember(self, here: State, d: Arrays, length: float, slope: float, trial: Trial) -> None:
        super().remember(here, d, length, slope, trial)
        assert trial.state is not None
        there, t = trial.state, trial.t
        self.pairs.carry(here.x, here.gradient, [t * a for a in d], there.x, t * length)
        self.pairs.append(there.gradient)

    def forget(self) -> bool:
        self.pairs.forget()
        return super().forget()


@dataclass(frozen=True)
class LBFGS(LineSearchMethod):
    """Limited-memory BFGS: pairs of a step s and its change y of the gradient are carried along by the transport of the manifold,
    and used where ⟨s, y⟩ > c ‖g‖ ‖s‖², g the gradient (Huang, Absil & Gallivan 2018). In flat space, where lengths have units, c is
    divided by the length of x0.

    Example:
        >>> from retract.optim import LBFGS, StrongWolfe
        >>> LBFGS(memory=20, search=StrongWolfe()).memory
        20

    Args:
        search: the line search; it has to satisfy Wolfe's conditions, or pairs are left out.
        memory: the number of pairs.
        caution: c ≥ 0.
    """

    memory: int = 10
    """The number of pairs."""
    caution: float = 1e-8
    """The factor c of the cautious test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.memory, int) or self.memory < 1:
            raise OptionError(f"memory={self.memory!r} is not an integer ≥ 1")
        if not 0.0 <= self.caution < math.inf:
            raise OptionError(f"caution={self.caution!r} is not a number ≥ 0")

    def start(self, space: Space) -> Directions:
        """As in `LineSearchMethod`."""
        return _LimitedMemory(space, self.memory, self.caution)


HESSIANS = ("auto", "pullback", "differences")


@dataclass(frozen=True)
class TrustRegions:
    """Newton's method in trust regions, with truncated conjugate gradients for its steps (Absil, Baker & Gallivan 2007, Algorithms 1, 2).

    The model at x is the second-order expansion of u ↦ f(retract(x, u)) at 0, by two backward passes through the retraction; where that is
    of second order, its second derivative is the Riemannian Hessian. So no manifold needs a Hessian of its own. For manifolds whose
    retraction cannot be differentiated twice, and for f without second derivatives, Hessian products are differences of gradients, carried
    back to x: one gradient per product.

    Example:
        >>> from retract.optim import TrustRegions
        >>> TrustRegions(hessian="differences").hessian
        'differences'

    Args:
        max_radius: the largest radius.
        radius: the first one; None: an eighth of the root of the number of coordinates, in flat space of the length of x0.
        accept: steps are taken whose decrease is this share of the model's, in [0, 1/4).
        kappa, theta: a step is exact enough when the residual has fallen by min(κ, (‖g‖/‖g₀‖)^θ), with g₀ at the start; θ = 1 makes the
            order of convergence 2.
        max_inner: Hessian products per step; None: ten times the number of coordinates.
        hessian: ``"pullback"``, ``"differences"``, or ``"auto"``: the first if it works at the start.
    """

    max_radius: float = math.inf
    """The largest radius."""
    radius: float | None = None
    """The first radius."""
    accept: float = 0.1
    """The least share of the promised decrease."""
    kappa: float = 0.1
    """The linear tolerance κ of a step."""
    theta: float = 1.0
    """The exponent θ of its superlinear tolerance."""
    max_inner: int | None = None
    """The most Hessian products per step."""
    hessian: str = "auto"
    """Where Hessian products come from."""

    def __post_init__(self) -> None:
        if not self.max_radius > 0.0:
            raise OptionError(f"max_radius={self.max_radius!r} is not a positive number")
        if self.radius is not None and not 0.0 < self.radius < math.inf:
            raise OptionError(f"radius={self.radius!r} is not a positive number or None")
        if not 0.0 <= self.accept < 0.25:
            raise OptionError(f"accept={self.accept!r} is outside [0, 1/4)")
        if not 0.0 < self.kappa < 1.0 or not self.theta >= 0.0:
            raise OptionError(f"kappa={self.kappa!r} has to be in (0, 1), theta={self.theta!r} ≥ 0")
        if self.max_inner is not None and (not isinstance(self.max_inner, int) or self.max_inner < 1):
            raise OptionError(f"max_inner={self.max_inner!r} is not an integer ≥ 1 or None")
        if self.hessian not in HESSIANS:
            raise OptionError(f"hessian={self.hessian!r} is not one of {', '.join(map(repr, HESSIANS))}")


METHODS: dict[str, LineSearchMethod | TrustRegions] = {
    "lbfgs": LBFGS(),
    "conjugate_gradients": ConjugateGradients(),
    "trust_regions": TrustRegions(),
    "steepest_descent": SteepestDescent(),
}
"""The methods that have a name."""


def named(method: Any) -> LineSearchMethod | TrustRegions:
    """The method of that name, or `method` itself.

    Raises `OptionError` for others.
    """
    found = METHODS.get(method) if isinstance(method, str) else method
    if not isinstance(found, LineSearchMethod | TrustRegions):
        raise OptionError(
            f"method={method!r} is not one of {', '.join(map(repr, METHODS))}, nor a method such as LBFGS(memory=20)"
        )
    return found
