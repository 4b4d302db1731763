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


def _size(x: Arrays) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(a, dtype=torch.float64)) for a in x))


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
    unit: float = 1.0
    """What values, gradients and Hessians are divided by: 1, or a power of 2 where the gradient at the start is so short or long
    that products of three of them are no numbers."""

    def value(self, x: Arrays) -> float:
        """f(x), without derivatives."""
        self.counts.nfev += 1
        return float(self._value(x))

    def start(self, x: Arrays) -> State:
        """The state at `x`.

        Raises:
            ProblemError: f(x) is not finite, is no scalar tensor, or does not depend on x; its gradient is not finite; x, or the gradient
                where f is about 1, has no square in its dtype.
        """
        value, egrad = self._gradients(x)
        f, gradient = float(value), self.space.each("riemannian_gradient", x, egrad)
        coarsest = max((torch.finfo(a.dtype) for a in (value, *x)), key=lambda one: one.eps)
        self.eps = coarsest.eps
        if not math.isfinite(f):
            raise ProblemError(f"f(x0) = {f}: the start has to be where f is finite; choose another x0")
        largest = max((float(g.abs().max()) for g in gradient if g.numel()), default=0.0)
        if not math.isfinite(largest):
            raise ProblemError(
                "the gradient at x0 is not finite, although f is: f has no derivative there; choose another x0"
            )
        least = coarsest.tiny**0.125
        if 0.0 < largest < least or largest > 1.0 / least:
            size = min(max(largest, min(coarsest.tiny**0.5 * abs(f), 1.0)), 1.0 / coarsest.tiny)  # f / size is finite
            self.unit = 2.0 ** math.floor(math.log2(size))
        gradient = [g / self.unit for g in gradient]
        state = State(x, f / self.unit, gradient, self._square(x, gradient))
        if self.space.flat:
            self.space.scale = self._scale(state)
        squares = state.square or float(largest == 0.0), self.space.scale * self.space.scale
        if not all(coarsest.tiny < one < coarsest.max for one in squares):
            raise ProblemError(
                f"f(x0) = {f:.1e} has a gradient with entries up to {largest:.1e}, and x0 entries up to "
                f"{max(float(a.abs().max()) for a in x if a.numel()):.1e}: squares of lengths are no numbers in {x[0].dtype}; take x in other units"
            )
        return state

    def _scale(self, start: State) -> float:
        """The scale of flat space: the length of the start, or, where it is so short that f hardly changes along it, the way on
        which f would fall to 0 if it went on as it begins; so it goes with the units of x and of f."""
        size, norm = _size(start.x), math.sqrt(start.square)
        if size * norm <= self.eps**0.5 * abs(start.f):
            size = abs(start.f) / norm if norm else 0.0
        return size or 1.0

    def state(self, x: Arrays) -> State:
        """The state at `x`."""
        value, egrad = self._gradients(x)
        return self._state(value, x, egrad)

    def pullback(self, x: Arrays) -> Model:
        """The state at `x`, and v ↦ H v with H the second derivative of u ↦ f(retract(x, u)) at 0, raised to a tangent."""
        with torch.enable_grad():
            u = [torch.zeros_like(a, requires_grad=True) for a in x]
            value = self._value(self.space.each("retract", x, u))
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
        scale = max(self.space.scale, _size(x)) if self.space.flat else self.space.scale
        value, first = self._slopes(x, [torch.zeros_like(a) for a in x])

        def product(v: Arrays) -> Arrays:
            self.counts.nhev += 1
            size = math.sqrt(float(self.space.inner(x, v, v)))
            if size == 0.0:
                return v
            h = self.eps**0.5 * scale / size
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
            value = self._value(self.space.each("retract", x, u))
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
        x, carried = space.moved(here.x, u, d)
        value, egrad = self._gradients(x)
        gradient = space.each("riemannian_gradient", x, egrad)
        both = [torch.stack(pair) for pair in zip(carried, gradient, strict=True)]
        products = space.products(x, both, gradient)
        f, steepness, length = torch.cat([value.reshape(1).to(products.device), products]).tolist()
        if not (math.isfinite(f) and math.isfinite(length)):
            return Trial(t, math.inf if math.isnan(f) else f, math.nan, None)
        return Trial(t, f, steepness, State(x, f, gradient, max(length, 0.0)))

    def _gradients(self, x: Arrays) -> tuple[Tensor, Arrays]:
        """f and the Euclidean gradients at `x`, which has no history."""
        with torch.enable_grad():
            leaves = [a.detach().requires_grad_() for a in x]
            value = self._value(leaves)
            egrad = self._grad(value, leaves)
        self.counts.nfev += 1
        self.counts.njev += 1
        return value.detach(), egrad

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
        return State(x, float(value), gradient, self._square(x, gradient))

    def _square(self, x: Arrays, u: Arrays) -> float:
        return max(float(self.space.inner(x, u, u)), 0.0)

    def _value(self, x: Arrays) -> Tensor:
        """f(x) in its unit, without dimensions."""
        value = self.function(x)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ProblemError(
                f"f returned {kind}, and it has to return one real number as a tensor, computed by torch's functions; sum it, or take its mean"
            )
        return value.reshape(()) if self.unit == 1.0 else value.reshape(()) / self.unit
