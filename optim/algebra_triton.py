"""What the Triton kernels compute of a row besides sums over it: the numbers of `tables`, in single and in double precision.

Every function works on numbers per strip of a tile as well as on the numbers of one row. `C` holds the choices that a
kernel is compiled for, in the order of the indices below; `buffer` starts with `HEAD` numbers of `Update`, as bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tables import Carry, Rescale

__all__ = [
    "ADAM",
    "CLIP",
    "COLUMNS",
    "HEAD",
    "HOLD",
    "LEVEL",
    "MOVING",
    "RECORD",
    "RESCALE",
    "UNIT",
    "move",
    "solve",
    "vectors",
]

UNIT, LINES, EXP, ADAM, INSIDE, CARRY, RESCALE, CLIP, MOVING, LEVEL = map(tl.constexpr, range(10))
"""Places in `C`: the choices of `Update`; whether lengths are limited, there is a vector, and the row itself stays out of
its vector, which saves three dot products."""
PROJECT, PARALLEL = tl.constexpr(int(Carry.PROJECT)), tl.constexpr(int(Carry.PARALLEL))
HOLD, FREE, RECORD = tl.constexpr(int(Rescale.HOLD)), tl.constexpr(int(Rescale.FREE)), tl.constexpr(int(Rescale.RECORD))
HEAD = tl.constexpr(15)
"""Numbers in front of the table."""
COLUMNS = tl.constexpr(7)
"""Of the table."""
SIGN, LIMIT, KEEP, TAKE, ALONG, AHEAD, LOW, HIGH = map(tl.constexpr, range(8))
BETA2, REST2, RATE, CORRECTION, EPS, TINY, ROUNDING = map(tl.constexpr, range(8, 15))
"""Places in the head: the numbers of `Update` with 1 − beta2 behind beta2, then √tiny and ε of the arithmetic."""


@triton.jit
def _number(buffer, index, like):
    """A number of the head, in the precision of `like`."""
    return tl.load(buffer + index).to(tl.float64, bitcast=True).to(like.dtype)


@triton.jit
def _power(r):
    """2^−e for r = m 2^e, ½ ≤ m < 1, exactly."""
    if r.dtype == tl.float64:
        return ((2045 - ((r.to(tl.int64, bitcast=True) >> 52) & 0x7FF)) << 52).to(tl.float64, bitcast=True)
    else:
        return ((253 - ((r.to(tl.int32, bitcast=True) >> 23) & 0xFF)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _sinc(theta):
    return tl.where(theta != 0, tl.sin(theta) / tl.where(theta != 0, theta, 1.0), 1.0)


@triton.jit
def vectors(buffer, xx, xg, hh, held, square, C: tl.constexpr):
    """Steps 1 to 5, from x·x, x·g, h·h (Adam and clipping only), the held norm and the second moment.

    Returns r, s and the new second moment, and the numbers in v' = kept v + vg g + vx x and u = along v' + ug g + ux x.
    """
    root, tiny = tl.sqrt(xx), _number(buffer, TINY, xx)
    r = tl.where(root < tiny, tiny, root)  # a maximum would lose NaN
    s = tl.full(r.shape, 1.0, r.dtype)
    if C[RESCALE] == HOLD:
        ratio = held / r
        s = tl.where((held >= 0) & (ratio < float("inf")), ratio, 1.0)
    if C[RESCALE] == FREE:
        inside = (r >= _number(buffer, LOW, xx)) & (r <= _number(buffer, HIGH, xx))
        s = tl.where(inside | (r != r) | (r == float("inf")), 1.0, _power(r))
    f = tl.full(r.shape, 1.0, r.dtype)
    if not C[UNIT]:
        f = r * r
    along = tl.full(r.shape, 1.0, r.dtype) * _number(buffer, ALONG, xx)
    if C[ADAM] or C[CLIP]:
        length = tl.sqrt(hh)
        if not C[UNIT]:
            length *= r
        if C[CLIP]:
            limit = _number(buffer, LIMIT, xx)
            shrink = tl.where(length <= limit, 1.0, limit / length)
            f *= shrink
            length *= shrink
        if C[ADAM]:
            square = _number(buffer, BETA2, xx) * square + _number(buffer, REST2, xx) * length * length
            rate, correction, eps = _number(buffer, RATE, xx), _number(buffer, CORRECTION, xx), _number(buffer, EPS, xx)
            if C[INSIDE]:
                along = -rate * correction / tl.sqrt(square + eps)
            else:
                along = -rate / (tl.sqrt(square) / correction + eps)
    f *= s * _number(buffer, SIGN, xx)
    kept, vg, ug = _number(buffer, KEEP, xx) * s, _number(buffer, TAKE, xx) * f, _number(buffer, AHEAD, xx) * f
    vx, ux = tl.zeros_like(vg), tl.zeros_like(ug)
    if C[UNIT]:
        vx, ux = -vg * xg, -ug * xg
    return r, s, square, kept, vg, vx, along, ug, ux


@triton.jit
def move(buffer, xx, uu, xu, uv, xv, n, r, s, kept, vg, vx, along, ug, ux, C: tl.constexpr):
    """Steps 6 and 7, from u·u, x·u, u·v' and x·v': the numbers in x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v."""
    k_x, k_u = tl.full(xx.shape, 1.0, xx.dtype), tl.full(xx.shape, 1.0, xx.dtype)
    t_v, t_x, t_u = tl.full(xx.shape, 1.0, xx.dtype), tl.zeros_like(xx), tl.zeros_like(xx)
    if not C[LEVEL]:
        # X = s x
        tiny = _number(buffer, TINY, xx)
        xx *= s * s
        xu *= s
        xv *= s
        metric = tl.full(xx.shape, 1.0, xx.dtype)
        if not C[UNIT]:
            metric = r * r * s * s
        sinc, versine = tl.full(xx.shape, 1.0, xx.dtype), tl.full(xx.shape, 0.5, xx.dtype)
        if C[EXP]:
            theta = tl.sqrt(uu / metric)
            sinc, half = _sinc(theta), _sinc(0.5 * theta)
            versine = 0.5 * half * half
            k_x, k_u = tl.cos(theta), sinc
        norm2 = k_x * k_x * xx + 2.0 * k_x * k_u * xu + k_u * k_u * uu
        if C[UNIT]:
            norm = tl.sqrt(norm2)
            moved = uu > 0
            if C[EXP]:
                rounding = _number(buffer, ROUNDING, xx) * (8.0 + tl.sqrt(n.to(tl.float32)).to(xx.dtype))
                moved = moved & ~(tl.abs(norm - 1.0) <= rounding)
            k_x, k_u = tl.where(moved, k_x / norm, k_x), tl.where(moved, k_u / norm, k_u)
        if C[CARRY] == PROJECT:
            tau = k_x * xv + k_u * uv
            if not C[UNIT]:
                tau /= tl.where(norm2 < tiny * tiny, tiny * tiny, norm2)
            t_x, t_u = -tau * k_x, -tau * k_u
        if C[CARRY] == PARALLEL:
            if C[EXP]:
                part = -uv / metric
                t_x, t_u = part * sinc, part * versine
            else:
                phi = tl.full(xx.shape, 1.0, xx.dtype)
                if C[LINES]:
                    phi = tl.where(k_x * xx + k_u * xu < 0, -1.0, phi)
                if not C[UNIT]:
                    size = tl.sqrt(norm2)
                    phi = r * s / tl.where(size < tiny, tiny, size)
                part = phi * (k_x * xv + k_u * uv) / (metric + phi * (k_x * xx + k_u * xu))
                t_v = 1.0 / phi
                t_x, t_u = -part * (t_v + k_x), -part * k_u
    k_x *= s
    t_x *= s
    if C[MOVING]:
        both = t_v + t_u * along
        y_x, y_g, y_v = k_x + k_u * (ux + along * vx), k_u * (ug + along * vg), k_u * along * kept
        w_x, w_g, w_v = both * vx + t_u * ux + t_x, both * vg + t_u * ug, both * kept
    else:
        y_x, y_g, y_v = k_x + k_u * ux, k_u * ug, k_u
        w_x, w_g, w_v = t_x, t_x, t_x
    return y_x, y_g, y_v, w_x, w_g, w_v


@triton.jit
def solve(entry, buffer, row, xx, xg, gg, xv, gv, vv, REAL: tl.constexpr, C: tl.constexpr):
    """`vectors` and `move` of a row from its dot products; keeps its held norm and second moment."""
    radius = tl.load(entry + 3).to(tl.pointer_type(REAL)) + row
    second = tl.load(entry + 4).to(tl.pointer_type(REAL)) + row
    held, square, hh = xx, xx, gg
    if C[RESCALE] == HOLD or C[RESCALE] == RECORD:
        held = tl.load(radius).to(tl.float64)
    if C[ADAM]:
        square = tl.load(second).to(tl.float64)
    if C[UNIT]:
        hh = gg - xg * xg * (2.0 - xx)
        hh = tl.where(hh < 0, 0.0, hh)
    r, s, square, kept, vg, vx, along, ug, ux = vectors(buffer, xx, xg, hh, held, square, C)
    q_x, q_g, q_v = ux, ug, tl.zeros_like(xx)
    if C[MOVING]:
        q_x, q_g, q_v = ux + along * vx, ug + along * vg, along * kept
    # The dot products of x, g and v with u = q_x x + q_g g + q_v v
    xu, gu, vu = q_x * xx + q_g * xg + q_v * xv, q_x * xg + q_g * gg + q_v * gv, q_x * xv + q_g * gv + q_v * vv
    uu = q_x * xu + q_g * gu + q_v * vu
    uu = tl.where(uu < 0, 0.0, uu)
    uv, xw = vx * xu + vg * gu + kept * vu, vx * xx + vg * xg + kept * xv
    n = tl.load(entry + 6)
    y_x, y_g, y_v, w_x, w_g, w_v = move(buffer, xx, uu, xu, uv, xw, n, r, s, kept, vg, vx, along, ug, ux, C)
    tl.debug_barrier()  # as in `_tile`
    if C[RESCALE] == HOLD or C[RESCALE] == RECORD:
        tl.store(radius, r.to(REAL), mask=held < 0)
    if C[ADAM]:
        tl.store(second, square.to(REAL))
    return y_x, y_g, y_v, w_x, w_g, w_v
