"""Functions of squares of angles and lengths by power series, smooth at 0 where angles and lengths are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial
from typing import TypeAlias

import torch
from torch import Tensor

from .numerics import derivatives_wanted

__all__ = ["circular", "hyperbolic", "polynomial"]


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Σ cⱼ xʲ by Horner's rule, in the shape of `x`; the constant term comes first."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


# Terms that the series of `circular` and `hyperbolic` need for second derivatives at θ² = 1: the next, 11·10/22!, is below 1e-19.
_TERMS = 11


def circular(square: Tensor, *orders: int) -> tuple[Tensor, ...]:
    """cos θ, sin θ / θ and (1 − cos θ) / θ², the functions of the given `orders` 0, 1 and 2, of the squared angle θ².

    They are Stumpff's functions Σ (−θ²)ʲ/(2j + k)!, smooth in θ² also at 0, where θ = √θ² has no derivative. So the
    series is used below θ = 1 where derivatives are wanted: those of the closed forms divide by powers of θ. The
    closed forms neither cancel nor divide by 0: (1 − cos θ)/θ² is ½ (sin(θ/2)/(θ/2))².
    """
    return _stumpff(square, orders, -1.0, torch.cos, torch.sin)


def hyperbolic(square: Tensor, *orders: int) -> tuple[Tensor, ...]:
    """cosh θ, sinh θ / θ and (cosh θ − 1) / θ² of θ², as `circular` of −θ²."""
    return _stumpff(square, orders, 1.0, torch.cosh, torch.sinh)


_Function: TypeAlias = Callable[[Tensor], Tensor]


def _stumpff(square: Tensor, orders: Sequence[int], sign: float, even: _Function, odd: _Function) -> tuple[Tensor, ...]:
    if not derivatives_wanted():
        theta = square.sqrt()
        return tuple(_closed_stumpff(theta, order, even, odd) for order in orders)
    small = square < 1.0
    near, theta = torch.where(small, square, 0.0), torch.where(small, 1.0, square).sqrt()
    return tuple(
        torch.where(
            small,
            polynomial(near, [sign**j / factorial(2 * j + order) for j in range(_TERMS)]),
            _closed_stumpff(theta, order, even, odd),
        )
        for order in orders
    )


def _closed_stumpff(theta: Tensor, order: int, even: _Function, odd: _Function) -> Tensor:
    if order == 0:
        return even(theta)
    if order == 2:
        return 0.5 * _closed_stumpff(0.5 * theta, 1, even, odd).square()
    nonzero = theta != 0
    safe = torch.where(nonzero, theta, 1.0)
    return torch.where(nonzero, odd(safe) / safe, 1.0)
