"""Seam 3: momentum and Adam, written once for every manifold.

A rule takes the tangent gradient and the memory of a batch of points, updates the memory, and returns
the tangent step, sign and learning rate included. `scale` is the factor by which the representatives are
rescaled in the same step (None: not at all). Tangent vectors stored at them scale along, which costs
nothing when it is folded into the factors that multiply them anyway.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..manifolds import Manifold
from .memory import Memory
from .options import Options
from .scaled import Scaled

__all__ = ["Adam", "Momentum", "Rule"]


class Rule(ABC):
    """An update rule as a value."""

    vectors: Sequence[str] = ()
    """Names of the tangent vectors that it keeps per point."""
    scalars: Sequence[str] = ()
    """Names of the numbers that it keeps per point."""
    options: frozenset[str] = frozenset()
    """Options that tell it from other rules."""
    counts_steps = False
    """Whether it needs the number of the step."""

    def needs(self, options: Options) -> Sequence[str]:
        """Those of `vectors` that a step with these options starts if they are not there yet."""
        return self.vectors

    @abstractmethod
    def __call__(
        self, manifold: Manifold, x: Tensor, gradient: Scaled, memory: Memory, options: Options, scale: Tensor | None
    ) -> Scaled:
        """Tangent step for the points `x`, (points, n)."""


@dataclass(frozen=True)
class Momentum(Rule):
    """Stochastic gradient descent with momentum, in one of two conventions (option `momentum_form`).

    ``"heavy_ball"`` (torch): b ← ρ b + (1 − τ) g, step −η b. ``"velocity"`` (Yi 2022, eq. 11; Cho & Lee 2017):
    u ← ρ u − η (1 − τ) g, step u. They agree as long as η is constant. As in torch, the first gradient enters
    a fresh buffer undamped.
    """

    vectors = ("momentum_buffer",)
    options = frozenset({"momentum"})

    def needs(self, options: Options) -> Sequence[str]:
        """The buffer, unless momentum is 0."""
        return self.vectors if options["momentum"] != 0 else ()

    def __call__(
        self, manifold: Manifold, x: Tensor, gradient: Scaled, memory: Memory, options: Options, scale: Tensor | None
    ) -> Scaled:
        """As in the class."""
        lr, rho = options["lr"], options["momentum"]
        if scale is not None:
            gradient = gradient.times(scale)
        buffer = memory.vectors.get("momentum_buffer")
        if buffer is None or rho == 0:
            if buffer is not None and scale is not None:
                buffer.mul_(scale)  # unused for now, and still a tangent vector at the point
            return gradient.times(-lr)
        velocity = options["momentum_form"] == "velocity"
        weight = 1.0 if memory.fresh else 1.0 - options["dampening"]
        buffer.mul_(rho if scale is None else rho * scale)
        gradient.add_to_(buffer, -lr * weight if velocity else weight)
        step = Scaled(buffer)
        if options["nesterov"]:
            ahead = gradient.times(-lr) if velocity else gradient
            step = Scaled(ahead.tensor().add(buffer, alpha=rho))
        return step if velocity else step.times(-lr)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015) with one second moment per point: the squared length of the gradient.

    On ``Euclidean(0)`` every coordinate is a point, and this is Adam itself. Option `eps_form`: ``"outside"``
    divides by √v̂ + ε (torch), ``"inside"`` by √(v + ε), with both bias corrections in the step size (Adam-G).
    """

    vectors = ("exp_avg",)
    options = frozenset({"betas"})
    scalars = ("exp_avg_sq",)
    counts_steps = True

    def __call__(
        self, manifold: Manifold, x: Tensor, gradient: Scaled, memory: Memory, options: Options, scale: Tensor | None
    ) -> Scaled:
        """As in the class."""
        assert memory.step is not None
        beta1, beta2 = options["betas"]
        mean, square = memory.vectors["exp_avg"], memory.scalars["exp_avg_sq"]
        length = gradient.length(manifold, x)
        square.mul_(beta2).add_(((1.0 - beta2) ** 0.5 * length).square())
        if scale is not None:
            gradient = gradient.times(scale)
        mean.mul_(beta1 if scale is None else beta1 * scale)
        gradient.add_to_(mean, 1.0 - beta1)
        # Reading the counter would wait for the device, so a captured step computes with it as a tensor.
        as_tensor = options["capturable"] or options["differentiable"]
        t = memory.step.to(x.dtype) if as_tensor else memory.step.item()
        correction1, correction2 = 1.0 - beta1**t, (1.0 - beta2**t) ** 0.5
        if options["eps_form"] == "inside":
            denominator = (square + options["eps"]).sqrt() / correction2
        else:
            denominator = square.sqrt() / correction2 + options["eps"]
        return Scaled(mean, -(options["lr"] / correction1) / denominator)
