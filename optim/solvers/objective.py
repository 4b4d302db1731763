"""The function to minimize: its values, gradients and slopes along curves, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import ProblemError
from .space import Arrays, Space

__all__ = ["Counts", "Model", "Objective", "State", "Trial"]


@dataclass
class Counts:
    """Numbers of evaluations so far."""

    nfev: int = 0
    njev: int = 0
    nhev: int = 0


class State(NamedTuple):
    """A point with what is known there."""

    x: Arrays
    f: float
    gradient: Arrays
    """The Riemannian gradient."""
    square: float
    """The square of its length."""


class Trial(NamedTuple):
    """A point on the curve t ↦ retract(x, t d)."""

    t: float
    f: float
    slope: float
    """The slope of f along d, transported to the point; NaN where f is not finite."""
    state: State | None
    """None where f or its gradient is not finite."""


Model = tuple[State, Callable[[Arrays], Arrays]]
"""A state, and products of a tangent with the Hessian there."""


@dataclass
class Objective:
    """`function` of the arrays of a point of `space`."""

    function: Callable[[Arrays], Any]
    space: Space
    counts: Counts = field(default_factory=Counts)
    eps: float = 0.0
    """The rounding error of f and of the arrays, that of the coarsest dtype among them; known from `start` on."""

    def value(self, x: Arrays) -> float:
        """f(x), without derivatives."""
        self.counts.nfev += 1
        return float(self._scalar(self.function(x)))

    def start(self, x: Arrays) -> State:
        """The state at `x`.

        Raises:
            ProblemError: f(x) is not finite, is no scalar tensor, or does not depend on x; its gradient is not finite, or has no square in
                its dtype.
        """
        value, x, egrad = self._gradients(x)
        self.eps = max(torch.finfo(a.dtype).eps for a in (value, *x))
        state = self._state(value, x, egrad)
        if not math.isfinite(state.f):
            raise ProblemError(f"f(x0) = {state.f}: the start has to be where f is finite; choose another x0")
        largest = max((float(g.abs().max()) for g in state.gradient if g.numel()), default=0.0)
        if not math.isfinite(largest):
            raise ProblemError(
                "the gradient at x0 is not finite, although f is: f has no derivative there; choose another x0"
            )
        if state.square == math.inf or (state.square == 0.0 and largest > 0.0):
            raise ProblemError(
                f"the gradient at x0 has entries up to {largest:.1e}, and the square of its length is {state.square} in {x[0].dtype}; "
                "multiply f by a constant"
            )
        return state

    def state(self, x: Arrays) -> State:
        """The state at `x`."""
        return self._state(*self._gradients(x))

    def pullback(self, x: Arrays) -> Model:
        """The state at `x`, and v ↦ H v with H the second derivative of u ↦ f(retract(x, u)) at 0, raised to a tangent."""
        with torch.enable_grad():
            u = [torch.zeros_like(a, requires_grad=True) for a in x]
            value = self._scalar(self.function(self.space.each("retract", x, u)))
            slopes = torch.autograd.grad(value, u, create_graph=True, allow_unused=True)
        self.counts.nfev += 1
        self.counts.njev += 1
        moving = [i for i, slope in enumerate(slopes) if slope is not None and slope.requires_grad]
        first = [torch.zeros_like(a) if b is None else b.detach() for a, b in zip(x, slopes, strict=True)]

        def product(v: Arrays) -> Arrays:
            self.counts.nhev += 1
            found = torch.autograd.grad(
                [slopes[i] for i in moving], u, [v[i] for i in moving], retain_graph=True, allow_unused=True
            )
            second = [torch.zeros_like(a) if b is None else b for a, b in zip(x, found, strict=True)]
            return self._raised(x, second)

        return self._state(value, x, first), product

    def differences(self, x: Arrays) -> Model:
        """As `pullback`, with H v as the difference of first derivatives of the pullback at h v and at 0, over h: one gradient each."""
        value, first = self._slopes(x, [torch.zeros_like(a) for a in x])

        def product(v: Arrays) -> Arrays:
            self.counts.nhev += 1
            size = math.sqrt(float(self.space.inner(x, v, v)))
            if size == 0.0:
                return v
            h = self.eps**0.5 / size
            _, ahead = self._slopes(x, [h * a for a in v])
            return self._raised(x, [(b - a) / h for a, b in zip(first, ahead, strict=True)])

        return self._state(value, x, first), product

    def _raised(self, x: Arrays, second: Arrays) -> Arrays:
        """The tangent whose inner products are the dot products with `second`: on quotients that is not horizontal by itself."""
        return self.space.each("project", x, self.space.each("riemannian_gradient", x, second))

    def _slopes(self, x: Arrays, u: Arrays) -> tuple[Tensor, Arrays]:
        """u ↦ f(retract(x, u)) and its first derivatives."""
        with torch.enable_grad():
            u = [a.requires_grad_() for a in u]
            value = self._scalar(self.function(self.space.each("retract", x, u)))
            slopes = self._grad(value, u)
        self.counts.nfev += 1
        self.counts.njev += 1
        return value.detach(), slopes

    def along(self, here: State, d: Arrays, t: float) -> Trial:
        """The trial at `t` in direction `d`, with the gradient; waits for a device once.

        The slope is ⟨grad f, T d⟩, with the transport T in place of the derivative of the retraction: it is the slope of the curve up to a
        share of the square of the step, and the one by which pairs (s, y) have ⟨s, y⟩ > 0 (Huang, Absil & Gallivan 2018).
        """
        space, u = self.space, [t * a for a in d]
        value, x, egrad = self._gradients(space.each("retract", here.x, u))
        gradient = space.each("riemannian_gradient", x, egrad)
        slope = space.slope(here.x, u, x, d, gradient)
        square = space.inner(x, gradient, gradient)
        dtype = torch.promote_types(value.dtype, square.dtype)
        numbers = [one.to(square.device, dtype) for one in (value, slope, square)]
        f, steepness, length = torch.stack(numbers).tolist()
        if not (math.isfinite(f) and math.isfinite(length)):
            return Trial(t, math.inf if math.isnan(f) else f, math.nan, None)
        return Trial(t, f, steepness, State(x, f, gradient, max(length, 0.0)))

    def _gradients(self, x: Arrays) -> tuple[Tensor, Arrays, Arrays]:
        """f, the point without a history, and the Euclidean gradients."""
        with torch.enable_grad():
            x = [a.detach().requires_grad_() for a in x]
            value = self._scalar(self.function(x))
            egrad = self._grad(value, x)
        self.counts.nfev += 1
        self.counts.njev += 1
        return value.detach(), [a.detach() for a in x], egrad

    @staticmethod
    def _grad(value: Tensor, x: Sequence[Tensor]) -> Arrays:
        if not value.requires_grad:
            raise ProblemError("f does not depend on x, or not through torch's functions: its value has no gradient")
        found = torch.autograd.grad(value, x, allow_unused=True)
        if all(one is None for one in found):
            raise ProblemError("f does not depend on x: no gradient reaches it")
        return [torch.zeros_like(a) if one is None else one for one, a in zip(found, x, strict=True)]

    def _state(self, value: Tensor, x: Arrays, egrad: Arrays) -> State:
        gradient = self.space.each("riemannian_gradient", x, egrad)
        return State(x, float(value), gradient, max(float(self.space.inner(x, gradient, gradient)), 0.0))

    @staticmethod
    def _scalar(value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ProblemError(
                f"f returned {kind}, and it has to return one real number as a tensor, computed by torch's functions; sum it, or take its mean"
            )
        return value.reshape(())
