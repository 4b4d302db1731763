"""Row kernels for hyperbolic rows on the CPU, in Numba: float32, with the algebra of a row in float64, and sums where it matters.

Rows are taken in blocks that fit in cache: the dot products of all rows of a block, then the algebra for all of them in one
loop, which is vectorized, then the linear combinations. Each kernel is compiled for its choices.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numba
import numpy as np
import torch

from . import algebra, hyperbolic, launch
from . import numba_loops as loops
from .launch import (
    COORDINATES,
    GRADIENT,
    POINTS,
    SQUARE,
    VECTOR,
    HyperbolicChoices,
    HyperbolicNumbers,
    HyperbolicUpdate,
    X,
)
from .numba_jobs import CHOICES, COUNTER, Job, compiled
from .threads import share

__all__ = ["schedule", "step"]

ROWS, BLOCK = 64, 2**12
"""The most rows and, unless one row is longer, elements of a block."""
NEAR = 0.75
"""‖x‖²/R² above which a row of the ball, and its block, is stepped in float64."""
NARROW = 8
"""Up to this many coordinates a kernel is compiled for their number: loops that short are half as fast."""
_NUMBERS = len(HyperbolicNumbers._fields)
_inlined = numba.njit(forceinline=True, **loops.OPTIONS)


_algebra = algebra.bind(
    (algebra.adam, *hyperbolic.FUNCTIONS),
    {"sqrt": math.sqrt, "exp": math.exp, "where": loops.where, "full_like": loops.full_like},
    _inlined,
)
_adam, _gradient, _steps = _algebra.adam, _algebra.gradient, _algebra.steps
_motion, _combination = _algebra.motion, _algebra.combination


@_inlined
def _products(x, g, v, n, rows, p, C, wide):
    """The dot products of each row, and the first coordinate of its gradient, into the columns of `p`, summed in the type of `wide`."""
    real, first = type(wide), 1 if C.sheet else 0
    for r in range(rows):
        xx, xg, xv, gg, gv, vv = wide, wide, wide, wide, wide, wide
        for i in range(r * n + first, r * n + n):
            a, b = real(x[i]), real(g[i])
            xx += a * a
            xg += a * b
            gg += b * b
            if C.moving:
                c = real(v[i])
                xv += a * c
                gv += b * c
                vv += c * c
        p[0, r], p[1, r], p[2, r], p[3, r], p[4, r], p[5, r] = xx, xg, xv, gg, gv, vv
        if C.sheet:
            p[6, r] = np.float64(g[r * n])


@_inlined
def _rough(p, rows, unit, C):
    """Whether float32 is too rough for a row of the ball: near the boundary, where squares overflow, and where a length underflows."""
    rough = False
    for r in range(rows):
        lost = (C.adam or C.clip) and not loops.fits(p[3, r])
        rough = rough or lost or not (p[0, r] < NEAR * unit and p[3, r] + p[5, r] < math.inf)
    return rough


@_inlined
def _solve(p, second, rows, to, C, N, rounding):
    """The coefficients of each row, its new second moment, and g(y) or, on the sheet, u·u, from the products `p`."""
    for r in range(rows):
        gap, share, f, length, hh, hv, vv = _gradient(
            p[0, r], p[1, r], p[2, r], p[3, r], p[4, r], p[5, r], p[6, r], N.unit, N.limit, rounding, C
        )
        along, square = N.along, 0.0
        if C.adam:
            square, along = _adam(length, np.float64(second[r]), N.beta2, N.rest, N.rate, N.correction, N.eps, C.inside)
        a, b, c, d = _steps(f, N.sign, N.keep, N.take, along, N.ahead)
        xx, xh, xv = p[0, r], p[1, r], p[2, r]
        uu = c * c * vv + 2.0 * c * d * hv + d * d * hh
        uw = c * a * vv + (c * b + d * a) * hv + d * b * hh
        k_x, k_u, t_v, t_x, t_u, other = _motion(
            gap, xx, c * xv + d * xh, uu, a * xv + b * xh, uw, N.unit, N.longest, C
        )
        to[0, r], to[1, r], to[2, r], to[3, r], to[4, r], to[5, r] = _combination(
            share, a, b, c, d, k_x, k_u, t_v, t_x, t_u
        )
        to[6, r], to[7, r] = square, other if not C.sheet else uu


@_inlined
def _combine(x, g, v, n, rows, k, C, zero, wide):
    """x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v in the type of `wide`, without first coordinates on the sheet."""
    real, kind, first = type(zero), type(wide), 1 if C.sheet else 0
    for r in range(rows):
        y_x, y_g, y_v = kind(k[0, r]), kind(k[1, r]), kind(k[2, r])
        w_x, w_g, w_v = kind(k[3, r]), kind(k[4, r]), kind(k[5, r])
        for i in range(r * n + first, r * n + n):
            a, b = kind(x[i]), kind(g[i])
            if C.moving:
                c = kind(v[i])
                x[i] = real(y_x * a + y_g * b + y_v * c)
                v[i] = real(w_x * a + w_g * b + w_v * c)
            else:
                x[i] = real(y_x * a + y_g * b)


@_inlined
def _lift(x, v, n, rows, k, unit, C, zero):
    """The first coordinates on the sheet, of points that have moved and of all vectors."""
    real = type(zero)
    for r in range(rows):
        xx, xv = 0.0, 0.0
        for i in range(r * n + 1, (r + 1) * n):
            a = np.float64(x[i])
            xx += a * a
            if C.moving:
                xv += a * np.float64(v[i])
        time = math.sqrt(unit + xx)
        if k[7, r] != 0.0:
            x[r * n] = real(time)
        if C.moving:
            v[r * n] = real(xv / time)


@_inlined
def _place(x, n, rows, k, unit, rounding, zero):
    """Points of the ball that are at its boundary after rounding are put at the norm (1 − 2ε) R."""
    for r in range(rows):
        if k[7, r] < 8.0 * rounding:
            xx = 0.0
            for i in range(r * n, (r + 1) * n):
                xx += np.float64(x[i]) * np.float64(x[i])
            if 1.0 - xx / unit <= 2.0 * rounding:
                inside = (1.0 - 2.0 * rounding) * math.sqrt(unit / xx)
                for i in range(r * n, (r + 1) * n):
                    x[i] = type(zero)(inside * np.float64(x[i]))


@_inlined
def _run(address, C, width, zero):
    """Take tasks until none is left; the words of a `Job` are at `address`. All rows have `width` coordinates, unless it is 0."""
    job = numba.carray(loops.pointer(address, address), CHOICES)
    table = numba.carray(loops.pointer(job[0], job[0]), (job[1], COORDINATES + 1))
    starts = numba.carray(loops.pointer(job[2], job[2]), (job[3], 2))
    a = numba.carray(loops.pointer(job[4], 0.0), _NUMBERS + 1)
    N = HyperbolicNumbers(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12])
    size, rounding = job[5], a[13]
    products, coefficients = np.empty((7, ROWS)), np.empty((8, ROWS))
    while True:
        task = loops.ticket(address + 8 * COUNTER)
        if task >= job[3] - 1:
            return
        matrix, row = starts[task, 0], starts[task, 1]
        last, end = starts[task + 1, 0], starts[task + 1, 1]
        while matrix < last or (matrix == last and row < end):
            n, stop = width or table[matrix, COORDINATES], table[matrix, POINTS] if matrix < last else end
            most = max(1, min(ROWS, BLOCK // n))
            while row < stop:
                rows, at = min(most, stop - row), row * n * size
                x, g = loops.pointer(table[matrix, X] + at, zero), loops.pointer(table[matrix, GRADIENT] + at, zero)
                v = loops.pointer(table[matrix, VECTOR] + at, zero)
                second = loops.pointer(table[matrix, SQUARE] + row * size, zero)
                exact = C.sheet
                if not C.sheet:
                    _products(x, g, v, n, rows, products, C, zero)
                    exact = _rough(products, rows, N.unit, C)
                if exact:
                    _products(x, g, v, n, rows, products, C, 0.0)
                _solve(products, second, rows, coefficients, C, N, rounding)
                if exact:
                    _combine(x, g, v, n, rows, coefficients, C, zero, 0.0)
                else:
                    _combine(x, g, v, n, rows, coefficients, C, zero, zero)
                if C.sheet:
                    _lift(x, v, n, rows, coefficients, N.unit, C, zero)
                else:
                    _place(x, n, rows, coefficients, N.unit, rounding, zero)
                if C.adam:
                    for r in range(rows):
                        second[r] = type(zero)(coefficients[6, r])
                row += rows
            matrix += 1
            row = 0


_DIGEST = hashlib.sha256(
    b"".join(Path(str(m.__file__)).read_bytes() for m in (algebra, hyperbolic, launch, loops))
).hexdigest()
_ZERO = np.float32(0)


def _entry(C, width, digest):
    """The kernel for the choices `C`; Numba's cache on disk depends on what it closes over, see `numba_rows`."""

    def run(address):
        if digest:
            _run(address, C, width, _ZERO)

    return run


_kernels: dict[tuple[HyperbolicChoices, int], int] = {}


def schedule(table: np.ndarray) -> Job:
    """The arguments that steps of `table` reuse."""
    return Job(table, 0, _NUMBERS + 1)


def step(table: np.ndarray, schedule: Job, update: HyperbolicUpdate, dtype: torch.dtype, device: torch.device) -> None:
    """One step of every row, in place, on as many threads as torch uses."""
    n = int(table[0, COORDINATES])
    key = update.choices, n if n <= NARROW and (table[:, COORDINATES] == n).all() else 0
    if key not in _kernels:
        _kernels[key] = compiled(_entry(*key, _DIGEST))
    schedule.write(table, update, dtype.itemsize, (float(torch.finfo(dtype).eps),))
    share(_kernels[key], schedule.address, min(torch.get_num_threads(), len(schedule.starts) - 1))
