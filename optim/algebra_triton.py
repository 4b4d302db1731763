"""What the Triton kernels compute of a row besides sums over it: the numbers of `tables`, in single and in double precision.

The functions work on one number per strip of a tile as well as on single ones. What they are compiled for is `C`, a
`Choices`; the numbers of `Update` lie in front of the table, as bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from .tables import Carry, Rescale, Update

__all__ = ["Choices", "choices", "entry_of", "head", "move", "solve", "vectors"]


class Choices(NamedTuple):
    """What kernels are compiled for. (Every launch compares each global name that a kernel uses: here they are one.)"""

    unit: bool
    lines: bool
    exp: bool
    adam: bool
    inside: bool
    project: bool
    parallel: bool
    hold: bool
    free: bool
    records: bool
    """Whether a norm that is not held yet is set."""
    clip: bool
    moving: bool
    """Whether there is a vector."""
    level: bool
    """Whether a row enters its vector nowhere, and no dot product but ‖x‖² is needed."""


def choices(update: Update, moving: bool) -> Choices:
    """Those of `update`, with or without a vector."""
    return Choices(
        update.unit,
        update.lines,
        update.exp,
        update.adam,
        update.inside,
        project=update.carry == Carry.PROJECT,
        parallel=update.carry == Carry.PARALLEL,
        hold=update.rescale == Rescale.HOLD,
        free=update.rescale == Rescale.FREE,
        records=update.rescale in (Rescale.HOLD, Rescale.RECORD),
        clip=update.limit < math.inf,
        moving=moving,
        level=not update.unit and not update.exp and (update.carry == Carry.NONE or not moving),
    )


def head(update: Update, tiny: float, rounding: float) -> list[float]:
    """The numbers of `update` in the order in which `_numbers` reads them; 1 − beta2 is taken in double precision, √tiny is that of the rows."""
    its = update
    return [
        *(its.sign, its.limit, its.keep, its.take, its.along, its.ahead, its.low, its.high, its.beta2, 1.0 - its.beta2),
        *(its.rate, its.correction, its.eps, tiny**0.5, rounding),
    ]


@triton.jit
def _numbers(buffer, like):
    """What `head` has put in front of the table, in the precision of `like`."""
    real: tl.constexpr = like.dtype
    at = buffer.to(tl.pointer_type(tl.float64), bitcast=True)
    sign, limit, keep = tl.load(at).to(real), tl.load(at + 1).to(real), tl.load(at + 2).to(real)
    take, along, ahead = tl.load(at + 3).to(real), tl.load(at + 4).to(real), tl.load(at + 5).to(real)
    low, high, beta2 = tl.load(at + 6).to(real), tl.load(at + 7).to(real), tl.load(at + 8).to(real)
    rest2, rate, correction = tl.load(at + 9).to(real), tl.load(at + 10).to(real), tl.load(at + 11).to(real)
    eps, tiny, rounding = tl.load(at + 12).to(real), tl.load(at + 13).to(real), tl.load(at + 14).to(real)
    return sign, limit, keep, take, along, ahead, low, high, beta2, rest2, rate, correction, eps, tiny, rounding


@triton.jit
def entry_of(buffer, matrix):
    """Where the table has a matrix: behind the numbers."""
    return buffer + 15 + matrix.to(tl.int64) * 7


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

    Returns r, s and the new second moment; the numbers in v' = kept v + vg g + vx x and u = along v' + ug g + ux x; √tiny and
    the rounding of 1.
    """
    sign, limit, keep, take, along, ahead, low, high, beta2, rest2, rate, correction, eps, tiny, rounding = _numbers(
        buffer, xx
    )
    root = tl.sqrt(xx)
    r = tl.where(root < tiny, tiny, root)  # a maximum would lose NaN
    s = tl.full(r.shape, 1.0, r.dtype)
    if C.hold:
        ratio = held / r
        s = tl.where((held >= 0) & (ratio < float("inf")) & (r > tiny), ratio, 1.0)
    if C.free:
        inside = (r >= low) & (r <= high) | (r <= tiny)
        s = tl.where(inside | (r != r) | (r == float("inf")), 1.0, _power(r))
    f = tl.full(r.shape, 1.0, r.dtype)
    if not C.unit:
        f = r * r
    along += tl.full(r.shape, 0.0, r.dtype)
    if C.adam or C.clip:
        length = tl.sqrt(hh)
        if not C.unit:
            length *= r
        if C.clip:
            shrink = tl.where(length <= limit, 1.0, limit / length)
            f *= shrink
            length *= shrink
        if C.adam:
            square = beta2 * square + rest2 * length * length
            if C.inside:
                along = -rate * correction / tl.sqrt(square + eps)
            else:
                along = -rate / (tl.sqrt(square) / correction + eps)
    f *= s * sign
    kept, vg, ug = keep * s, take * f, ahead * f
    vx, ux = tl.full(vg.shape, 0.0, vg.dtype), tl.full(ug.shape, 0.0, ug.dtype)
    if C.unit:
        vx, ux = -vg * xg, -ug * xg
    return r, s, square, kept, vg, vx, along, ug, ux, tiny, rounding


@triton.jit
def move(xx, uu, xu, uv, xv, n, r, s, kept, vg, vx, along, ug, ux, tiny, rounding, C: tl.constexpr):
    """Steps 6 and 7, from u·u, x·u, u·v' and x·v': the numbers in x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v."""
    k_x, k_u = tl.full(xx.shape, 1.0, xx.dtype), tl.full(xx.shape, 1.0, xx.dtype)
    t_v, t_x, t_u = tl.full(xx.shape, 1.0, xx.dtype), tl.full(xx.shape, 0.0, xx.dtype), tl.full(xx.shape, 0.0, xx.dtype)
    if not C.level:
        # X = s x
        xx *= s * s
        xu *= s
        xv *= s
        metric = tl.full(xx.shape, 1.0, xx.dtype)
        if not C.unit:
            metric = r * r * s * s
        sinc, versine = tl.full(xx.shape, 1.0, xx.dtype), tl.full(xx.shape, 0.5, xx.dtype)
        if C.exp:
            theta = tl.sqrt(uu / metric)
            sinc, half = _sinc(theta), _sinc(0.5 * theta)
            versine = 0.5 * half * half
            k_x, k_u = tl.cos(theta), sinc
        norm2 = k_x * k_x * xx + 2.0 * k_x * k_u * xu + k_u * k_u * uu
        if C.unit:
            norm = tl.sqrt(norm2)
            moved = uu > 0
            if C.exp:
                rounding *= 8.0 + tl.sqrt(n.to(tl.float32)).to(xx.dtype)
                moved = moved & ~(tl.abs(norm - 1.0) <= rounding)
            k_x, k_u = tl.where(moved, k_x / norm, k_x), tl.where(moved, k_u / norm, k_u)
        if C.project:
            tau = k_x * xv + k_u * uv
            if not C.unit:
                tau /= tl.where(norm2 < tiny * tiny, tiny * tiny, norm2)
            t_x, t_u = -tau * k_x, -tau * k_u
        if C.parallel:
            if C.exp:
                part = -uv / metric
                t_x, t_u = part * sinc, part * versine
            else:
                phi = tl.full(xx.shape, 1.0, xx.dtype)
                if C.lines:
                    phi = tl.where(k_x * xx + k_u * xu < 0, -1.0, phi)
                if not C.unit:
                    size = tl.sqrt(norm2)
                    phi = r * s / tl.where(size < tiny, tiny, size)
                yv, beside = k_x * xv + k_u * uv, metric + phi * (k_x * xx + k_u * xu)
                antipodal = beside <= rounding * metric
                t_v = 1.0 / phi
                part = phi * yv / tl.where(antipodal, metric, beside)
                # Of an antipode, z = −x: (v' − ⟨z, v'⟩ₓ z)/φ
                t_x, t_u = -part * (tl.where(antipodal, 0.0, t_v) + k_x), -part * k_u
    k_x *= s
    t_x *= s
    if C.moving:
        both = t_v + t_u * along
        y_x, y_g, y_v = k_x + k_u * (ux + along * vx), k_u * (ug + along * vg), k_u * along * kept
        w_x, w_g, w_v = both * vx + t_u * ux + t_x, both * vg + t_u * ug, both * kept
    else:
        y_x, y_g, y_v = k_x + k_u * ux, k_u * ug, k_u
        w_x, w_g, w_v = t_x, t_x, t_x
    return y_x, y_g, y_v, w_x, w_g, w_v


@triton.jit
def solve(entry, buffer, row, xx, xg, gg, xv, gv, vv, part, REAL: tl.constexpr, C: tl.constexpr):
    """`vectors` and `move` of a row from its dot products; keeps its held norm and second moment.

    For Adam on unit vectors g − part x, part = x·g, has taken the place of g: it is h already.
    """
    radius = tl.load(entry + 3).to(tl.pointer_type(REAL)) + row
    second = tl.load(entry + 4).to(tl.pointer_type(REAL)) + row
    held, square, hh = xx, xx, gg
    if C.records:
        held = tl.load(radius).to(tl.float64)
    if C.adam:
        square = tl.load(second).to(tl.float64)
    normal = xg
    if C.unit and C.adam:
        normal = xg * 0.0
    elif C.unit:
        hh = gg - xg * xg * (2.0 - xx)
        hh = tl.where(hh < 0, 0.0, hh)
    r, s, square, kept, vg, vx, along, ug, ux, tiny, rounding = vectors(buffer, xx, normal, hh, held, square, C)
    q_x, q_g, q_v = ux, ug, tl.full(xx.shape, 0.0, xx.dtype)
    if C.moving:
        q_x, q_g, q_v = ux + along * vx, ug + along * vg, along * kept
    # The dot products of x, g and v with u = q_x x + q_g g + q_v v
    xu, gu, vu = q_x * xx + q_g * xg + q_v * xv, q_x * xg + q_g * gg + q_v * gv, q_x * xv + q_g * gv + q_v * vv
    uu = q_x * xu + q_g * gu + q_v * vu
    uu = tl.where(uu < 0, 0.0, uu)
    uv, xw = vx * xu + vg * gu + kept * vu, vx * xx + vg * xg + kept * xv
    n = tl.load(entry + 6)
    y_x, y_g, y_v, w_x, w_g, w_v = move(xx, uu, xu, uv, xw, n, r, s, kept, vg, vx, along, ug, ux, tiny, rounding, C)
    if C.unit and C.adam:
        y_x, w_x = y_x - y_g * part, w_x - w_g * part
    tl.debug_barrier()  # as in `_tile`
    if C.records:
        tl.store(radius, r.to(REAL), mask=held < 0)
    if C.adam:
        tl.store(second, square.to(REAL))
    return y_x, y_g, y_v, w_x, w_g, w_v
