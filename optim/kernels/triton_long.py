"""Rows of any length in Triton: dot products over pieces of a row, and the linear combinations.

The algebra of a row is bound to Triton here. Its functions work on scalars and on blocks with an entry per strip of a tile.
Kernels are compiled for `C`, the `Choices` of an update; its numbers precede the table in the buffer, as bits.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from . import algebra
from .launch import HyperbolicUpdate, Update

__all__ = [
    "OPERATIONS",
    "aligned",
    "arrays",
    "cells",
    "entry_of",
    "looped",
    "move",
    "move_pieces",
    "narrow",
    "numbers",
    "solve_rows",
    "sum_pieces",
    "vectors",
]


def cells(update: Update | HyperbolicUpdate, table: np.ndarray, tiny: float, rounding: float) -> np.ndarray:
    """The buffer that a kernel reads, as int64: the numbers of `update`, √tiny, the machine epsilon, and the table."""
    return np.concatenate([np.array([*update.numbers, tiny**0.5, rounding]).view(np.int64), table.ravel()])


@triton.jit
def numbers(buffer, like):
    """The numbers at the start of the buffer of `cells`, in the precision of `like`."""
    real: tl.constexpr = like.dtype
    at = buffer.to(tl.pointer_type(tl.float64), bitcast=True)
    sign, limit, keep = tl.load(at).to(real), tl.load(at + 1).to(real), tl.load(at + 2).to(real)
    take, along, ahead = tl.load(at + 3).to(real), tl.load(at + 4).to(real), tl.load(at + 5).to(real)
    low, high, beta2 = tl.load(at + 6).to(real), tl.load(at + 7).to(real), tl.load(at + 8).to(real)
    rest, rate, correction = tl.load(at + 9).to(real), tl.load(at + 10).to(real), tl.load(at + 11).to(real)
    eps, tiny = tl.load(at + 12).to(real), tl.load(at + 13).to(real)
    return sign, limit, keep, take, along, ahead, low, high, beta2, rest, rate, correction, eps, tiny


@triton.jit
def entry_of(buffer, matrix):
    """The address of a matrix's row in the table, which follows the numbers."""
    return buffer + 15 + matrix.to(tl.int64) * 8


@triton.jit
def _power(r):
    """2^−e for r = m 2^e, ½ ≤ m < 1, exactly."""
    if r.dtype == tl.float64:
        return ((2045 - ((r.to(tl.int64, bitcast=True) >> 52) & 0x7FF)) << 52).to(tl.float64, bitcast=True)
    else:
        return ((253 - ((r.to(tl.int32, bitcast=True) >> 23) & 0xFF)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _sqrt(a):
    return tl.sqrt(a)


@triton.jit
def _sin(a):
    return tl.sin(a)


@triton.jit
def _cos(a):
    return tl.cos(a)


@triton.jit
def _where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def _full_like(a, value):
    return tl.full(a.shape, value, a.dtype)


@triton.jit
def _exp(a):
    return tl.exp(a)


# The interpreter replaces the functions of `tl` while a kernel runs, so they must be looked up at that time.
OPERATIONS = {
    "sqrt": _sqrt,
    "sin": _sin,
    "cos": _cos,
    "exp": _exp,
    "where": _where,
    "full_like": _full_like,
    "power_below": _power,
    "tl": tl,
}
_row = algebra.bind(algebra.FUNCTIONS, OPERATIONS, triton.jit)
_rescaling, _clipped, _adam, _direction = _row.rescaling, _row.clipped, _row.adam, _row.direction
_motion, _carry, _combination = _row.motion, _row.carry, _row.combination


@triton.jit
def vectors(buffer, entry, row, mask, xx, xg, hh, held, square, C: tl.constexpr):
    """r, s, the new second moment and the results of `algebra.direction`, from x·x, x·g, h·h (where lengths are needed), the
    held norm and the old second moment."""
    sign, limit, keep, take, along, ahead, low, high, beta2, rest, rate, correction, eps, tiny = numbers(buffer, xx)
    root = tl.sqrt(xx)
    r = tl.where(root < tiny, tiny, root)  # a maximum would lose NaN
    s = tl.full(r.shape, 1.0, r.dtype)
    if C.hold or C.free:
        s = _rescaling(r, held, low, high, tiny, C)
    f, length = _clipped(hh, r, limit, C)
    if C.adam:
        square, along = _adam(length, square, beta2, rest, rate, correction, eps, C.inside)
    if C.per_point:
        given = tl.load(entry + 5).to(tl.pointer_type(tl.float64)) + 4 * row
        keep, take = tl.load(given, mask=mask, other=0.0), tl.load(given + 1, mask=mask, other=0.0)
        along, ahead = tl.load(given + 2, mask=mask, other=0.0), tl.load(given + 3, mask=mask, other=0.0)
        keep, take, along, ahead = keep.to(r.dtype), take.to(r.dtype), along.to(r.dtype), ahead.to(r.dtype)
    kept, vg, vx, along, ug, ux = _direction(f, s, xg, sign, keep, take, along, ahead, C)
    return r, s, square, kept, vg, vx, along, ug, ux


@triton.jit
def move(buffer, xx, uu, xu, uv, xv, n, r, s, kept, vg, vx, along, ug, ux, C: tl.constexpr):
    """The coefficients in x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v, from u·u, x·u, u·v' and x·v'."""
    at = buffer.to(tl.pointer_type(tl.float64), bitcast=True)
    tiny, rounding = tl.load(at + 13).to(xx.dtype), tl.load(at + 14).to(xx.dtype)
    one, zero = tl.full(xx.shape, 1.0, xx.dtype), tl.full(xx.shape, 0.0, xx.dtype)
    k_x, k_u, t_v, t_x, t_u = one, one, one, zero, zero
    if not C.additive:
        xx, xu, xv, r = xx * s * s, xu * s, xv * s, r * s
        k_x, k_u, norm2 = _motion(xx, xu, uu, r, tl.sqrt(n.to(tl.float32)).to(xx.dtype), rounding, C)
        if C.project or C.parallel:
            t_v, t_x, t_u = _carry(xx, xu, uu, xv, uv, k_x, k_u, norm2, r, rounding, tiny, C)
    return _combination(s, kept, vg, vx, along, ug, ux, k_x, k_u, t_v, t_x, t_u)


@triton.jit
def _solve(entry, buffer, row, xx, xg, gg, xv, gv, vv, part, REAL: tl.constexpr, C: tl.constexpr):
    """The coefficients of `move` for a row, from its dot products; stores its norm and second moment.

    For rules that read lengths, on unit vectors, the dot products are those of h = g − part x with part = x·g, in place of g.
    """
    radius = tl.load(entry + 3).to(tl.pointer_type(REAL)) + row
    second = tl.load(entry + 4).to(tl.pointer_type(REAL)) + row
    held, square, hh = xx, xx, gg
    if C.store_radius:
        held = tl.load(radius).to(tl.float64)
    if C.adam:
        square = tl.load(second).to(tl.float64)
    normal = xg
    if C.unit and (C.adam or C.per_point):
        normal = xg * 0.0
    elif C.unit:
        hh = gg - xg * xg * (2.0 - xx)
        hh = tl.where(hh < 0, 0.0, hh)
    r, s, square, kept, vg, vx, along, ug, ux = vectors(buffer, entry, row, True, xx, normal, hh, held, square, C)
    q_x, q_g, q_v = ux, ug, tl.full(xx.shape, 0.0, xx.dtype)
    if C.moving:
        q_x, q_g, q_v = ux + along * vx, ug + along * vg, along * kept
    # The dot products of x, g and v with u = q_x x + q_g g + q_v v
    xu, gu, vu = q_x * xx + q_g * xg + q_v * xv, q_x * xg + q_g * gg + q_v * gv, q_x * xv + q_g * gv + q_v * vv
    uu = q_x * xu + q_g * gu + q_v * vu
    uu = tl.where(uu < 0, 0.0, uu)
    uv, xw = vx * xu + vg * gu + kept * vu, vx * xx + vg * xg + kept * xv
    n = tl.load(entry + 7)
    y_x, y_g, y_v, w_x, w_g, w_v = move(buffer, xx, uu, xu, uv, xw, n, r, s, kept, vg, vx, along, ug, ux, C)
    if C.unit and (C.adam or C.per_point):
        y_x, w_x = y_x - y_g * part, w_x - w_g * part
    tl.debug_barrier()  # as in `_tile`
    if C.store_radius:
        tl.store(radius, r.to(REAL), mask=held < 0)
    if C.adam:
        tl.store(second, square.to(REAL))
    return y_x, y_g, y_v, w_x, w_g, w_v


@triton.jit
def arrays(entry, D: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to points, gradient and vector of the matrix at `entry`, and n, with hints of their alignment."""
    x = tl.load(entry).to(tl.pointer_type(D))
    g = tl.load(entry + 1).to(tl.pointer_type(D))
    v = tl.load(entry + 2).to(tl.pointer_type(D))
    n = tl.load(entry + 7)
    if ALIGNED:
        x, g, v = tl.multiple_of(x, 16), tl.multiple_of(g, 16), tl.multiple_of(v, 16)
        n = n // (128 // D.primitive_bitwidth) * (128 // D.primitive_bitwidth)
    return x, g, v, n


@triton.jit
def aligned(entry, D: tl.constexpr):
    """Whether every row of the three arrays starts at a multiple of 16 bytes, the widest access."""
    bits = tl.load(entry) | tl.load(entry + 1) | tl.load(entry + 2) | (tl.load(entry + 7) * (D.primitive_bitwidth // 8))
    return bits % 16 == 0


@triton.jit
def narrow(v, D: tl.constexpr):
    """v in the type D; finite values beyond the range of float16 become its largest."""
    if tl.float16 == D:
        v = tl.where(tl.abs(v) < float("inf"), tl.where(tl.abs(v) < 65504.0, v, tl.where(v < 0, -65504.0, 65504.0)), v)
    return v.to(D)


@triton.jit
def _gram(entry, row, begin, end, part, D: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr):
    """x·x, x·g, g·g, x·v, g·v and v·v over the coordinates from `begin` to `end` of a row, as far as they are needed; with
    g − part x in place of g for rules that read lengths, on unit vectors."""
    px, pg, pv, n = arrays(entry, D, ALIGNED)
    zero = tl.cast(0.0, tl.float64)
    xx, xg, gg, xv, gv, vv = zero, zero, zero, zero, zero, zero
    for start in range(begin, end, TILE):
        column = start + tl.arange(0, TILE)
        x = tl.load(px + row * n + column, mask=column < n, other=0.0).to(tl.float64)
        xx += tl.sum(x * x)
        if not C.additive or C.measures:
            g = tl.load(pg + row * n + column, mask=column < n, other=0.0).to(tl.float64)
            if C.unit and (C.adam or C.per_point):
                g -= part * x
            xg += tl.sum(x * g)
            gg += tl.sum(g * g)
        if C.moving and not C.additive:
            v = tl.load(pv + row * n + column, mask=column < n, other=0.0).to(tl.float64)
            xv += tl.sum(x * v)
            gv += tl.sum(g * v)
            vv += tl.sum(v * v)
    return xx, xg, gg, xv, gv, vv


@triton.jit
def _combine(entry, row, begin, end, y_x, y_g, y_v, w_x, w_g, w_v, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v over the coordinates from `begin` to `end` of a row; in float64
    on unit vectors, where x and an almost normal g nearly cancel."""
    wide: tl.constexpr = tl.float64 if C.unit else REAL
    px, pg, pv, n = arrays(entry, D, ALIGNED)
    for start in range(begin, end, TILE):
        column = start + tl.arange(0, TILE)
        x = tl.load(px + row * n + column, mask=column < n, other=0.0).to(wide)
        g = tl.load(pg + row * n + column, mask=column < n, other=0.0).to(wide)
        y = y_x.to(wide) * x + y_g.to(wide) * g
        if C.moving:
            v = tl.load(pv + row * n + column, mask=column < n, other=0.0).to(wide)
            w = w_g.to(wide) * g + w_v.to(wide) * v
            if not C.additive:
                w += w_x.to(wide) * x
            tl.store(pv + row * n + column, narrow(w.to(REAL), D), mask=column < n)
            y += y_v.to(wide) * v
        tl.store(px + row * n + column, y.to(REAL).to(D), mask=column < n)


@triton.jit
def looped(entry, buffer, row, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """One step of a row, tile by tile."""
    n = tl.load(entry + 7)
    part = tl.cast(0.0, tl.float64)
    xx, xg, gg, xv, gv, vv = _gram(entry, row, 0, n, part, D, C, TILE, ALIGNED)
    if C.unit and (C.adam or C.per_point):
        # For an almost normal gradient g·g − (x·g)² is rounding error, and Adam scales its root to the length of a step.
        part = xg
        xx, xg, gg, xv, gv, vv = _gram(entry, row, 0, n, part, D, C, TILE, ALIGNED)
    y_x, y_g, y_v, w_x, w_g, w_v = _solve(entry, buffer, row, xx, xg, gg, xv, gv, vv, part, REAL, C)
    _combine(entry, row, 0, n, y_x, y_g, y_v, w_x, w_g, w_v, D, REAL, C, TILE, ALIGNED)


@triton.jit
def sum_pieces(buffer, pieces, rows, before, sums, D: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr, AGAIN: tl.constexpr):  # fmt: skip
    """The dot products of each entry (matrix, row, piece, index of its row) of `pieces`, into `sums`; with `AGAIN`, without
    the part of g along x, computed from the sums `before`."""
    piece = pieces + 4 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(piece))
    row = tl.load(piece + 1)
    begin = tl.load(piece + 2).to(tl.int64) * PIECE
    end = tl.minimum(tl.load(entry + 7), begin + PIECE)
    part = tl.cast(0.0, tl.float64)
    if AGAIN:
        whole = rows + 4 * tl.load(piece + 3)
        part = _along(before, tl.load(whole + 2), tl.load(whole + 3))
    if aligned(entry, D):
        xx, xg, gg, xv, gv, vv = _gram(entry, row, begin, end, part, D, C, TILE, True)
    else:
        xx, xg, gg, xv, gv, vv = _gram(entry, row, begin, end, part, D, C, TILE, False)
    _store(sums, tl.program_id(0), xx, xg, gg, xv, gv, vv)


@triton.jit
def _along(sums, first, count):
    """x·g of a row from the sums over its `count` pieces from `first` on."""
    part = tl.cast(0.0, tl.float64)
    for index in range(count):
        part += tl.load(sums + (first + index).to(tl.int64) * 6 + 1)
    return part


@triton.jit
def solve_rows(buffer, rows, before, sums, coefficients, REAL: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """The coefficients of each entry (matrix, row, first piece, pieces) of `rows`."""
    whole = rows + 4 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(whole))
    first, count = tl.load(whole + 2), tl.load(whole + 3)
    zero = tl.cast(0.0, tl.float64)
    xx, xg, gg, xv, gv, vv = zero, zero, zero, zero, zero, zero
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        part = sums + (first + index).to(tl.int64) * 6
        xx += tl.sum(tl.load(part, mask=index < count, other=0.0))
        xg += tl.sum(tl.load(part + 1, mask=index < count, other=0.0))
        gg += tl.sum(tl.load(part + 2, mask=index < count, other=0.0))
        xv += tl.sum(tl.load(part + 3, mask=index < count, other=0.0))
        gv += tl.sum(tl.load(part + 4, mask=index < count, other=0.0))
        vv += tl.sum(tl.load(part + 5, mask=index < count, other=0.0))
    along = tl.cast(0.0, tl.float64)
    if C.unit and (C.adam or C.per_point):
        along = _along(before, first, count)
    y_x, y_g, y_v, w_x, w_g, w_v = _solve(entry, buffer, tl.load(whole + 1), xx, xg, gg, xv, gv, vv, along, REAL, C)
    _store(coefficients, tl.program_id(0), y_x, y_g, y_v, w_x, w_g, w_v)


@triton.jit
def move_pieces(buffer, pieces, coefficients, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """The linear combinations over each piece."""
    piece = pieces + 4 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(piece))
    row = tl.load(piece + 1)
    begin = tl.load(piece + 2).to(tl.int64) * PIECE
    end = tl.minimum(tl.load(entry + 7), begin + PIECE)
    source = coefficients + tl.load(piece + 3) * 6
    y_x, y_g, y_v = tl.load(source), tl.load(source + 1), tl.load(source + 2)
    w_x, w_g, w_v = tl.load(source + 3), tl.load(source + 4), tl.load(source + 5)
    if aligned(entry, D):
        _combine(entry, row, begin, end, y_x, y_g, y_v, w_x, w_g, w_v, D, REAL, C, TILE, True)
    else:
        _combine(entry, row, begin, end, y_x, y_g, y_v, w_x, w_g, w_v, D, REAL, C, TILE, False)


@triton.jit
def _store(out, index, a, b, c, d, e, f):
    target = out + index.to(tl.int64) * 6
    tl.store(target, a)
    tl.store(target + 1, b)
    tl.store(target + 2, c)
    tl.store(target + 3, d)
    tl.store(target + 4, e)
    tl.store(target + 5, f)
