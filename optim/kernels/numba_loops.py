"""The loops of Numba's row kernel over the coordinates of a block of a row: dot products and linear combinations."""

from __future__ import annotations

import math
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "OPTIONS", "combine", "combine_alone", "fits", "form", "full_like", "part", "pointer", "points_and_gradient", "products", "products_alone",
    "scale", "square", "square_off", "ticket", "where",
]  # fmt: skip

FEWEST = 1e-32
"""Sums of squares below this are computed again in float64."""
# Without nnan and ninf: NaN and infinity keep their meaning.
OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
part = numba.njit(**OPTIONS)


@intrinsic
def pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """The int `address` as a pointer to numbers of the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), codegen


@intrinsic
def ticket(typingctx: Any, address: Any) -> Any:
    """Add 1 to the int64 at `address` atomically; returns the value before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), codegen


@part
def where(condition, a, b):
    """As `torch.where` of scalars."""
    return a if condition else b


@part
def full_like(a, value):
    """As `torch.full_like` of a scalar."""
    return value


@part
def points_and_gradient(x, g, n, zero):
    """x·x and x·g, summed in the type of `zero`, like all sums here."""
    real, xx, xg = type(zero), zero, zero
    for i in range(n):
        a = real(x[i])
        xx += a * a
        xg += a * real(g[i])
    return xx, xg


@part
def square(x, n, zero):
    """x·x."""
    real, xx = type(zero), zero
    for i in range(n):
        a = real(x[i])
        xx += a * a
    return xx


@part
def square_off(x, g, along, n, zero):
    """h·h with h = g − along x."""
    real, hh = type(zero), zero
    for i in range(n):
        h = real(g[i]) - real(along) * real(x[i])
        hh += h * h
    return hh


@part
def form(x, g, v, to_v, n):
    """v ← v' = (v, g, x)·to_v."""
    v_v, v_g, v_x = to_v
    for i in range(n):
        v[i] = v_v * v[i] + v_g * g[i] + v_x * x[i]


@part
def products(x, g, v, to_v, to_u, n, zero):
    """x·u, u·u, x·v', u·v' with v' = (v, g, x)·to_v and u = (v', g, x)·to_u."""
    real, xu, uu, xv, uv = type(zero), zero, zero, zero, zero
    v_v, v_g, v_x = real(to_v[0]), real(to_v[1]), real(to_v[2])
    u_v, u_g, u_x = real(to_u[0]), real(to_u[1]), real(to_u[2])
    for i in range(n):
        a, b = real(x[i]), real(g[i])
        w = v_v * real(v[i]) + v_g * b + v_x * a
        u = u_v * w + u_g * b + u_x * a
        xu += a * u
        uu += u * u
        xv += a * w
        uv += u * w
    return xu, uu, xv, uv


@part
def products_alone(x, g, ahead_g, ahead_x, n, zero):
    """x·u and u·u with u = ahead_g g + ahead_x x."""
    real, xu, uu = type(zero), zero, zero
    for i in range(n):
        a = real(x[i])
        u = real(ahead_g) * real(g[i]) + real(ahead_x) * a
        xu += a * u
        uu += u * u
    return xu, uu


@part
def combine(x, g, v, to_x, to_v, n):
    """x ← (x, g, v)·to_x and v ← (x, g, v)·to_v, together."""
    y_x, y_g, y_v = to_x
    w_x, w_g, w_v = to_v
    for i in range(n):
        a, b, c = x[i], g[i], v[i]
        x[i] = y_x * a + y_g * b + y_v * c
        v[i] = w_x * a + w_g * b + w_v * c


@part
def combine_alone(x, g, to_x, n):
    """x ← (x, g)·to_x, for rows without a vector."""
    y_x, y_g, _ = to_x
    for i in range(n):
        x[i] = y_x * x[i] + y_g * g[i]


@part
def scale(x, factor, n):
    """x ← factor x."""
    for i in range(n):
        x[i] *= factor


@part
def fits(square):
    """Whether a sum of squares in float32 has neither overflowed nor lost digits to subnormal numbers."""
    return FEWEST < square < math.inf or square == 0
