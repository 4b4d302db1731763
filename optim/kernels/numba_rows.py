"""Row kernels for the CPU, in Numba: float32 and float64.

Each row is read from memory once; later passes over it find it in cache. Sums run over blocks of a row, in an order that
does not depend on the threads. A float32 row whose squares overflow or underflow is computed again with float64 sums.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numba
import numpy as np
import torch

from . import algebra, launch
from . import numba_loops as loops
from .launch import COEFFICIENTS, COORDINATES, GRADIENT, POINTS, RADIUS, SQUARE, VECTOR, Choices, Numbers, Update, X
from .numba_jobs import CHOICES, COUNTER, Job, compiled
from .threads import share

__all__ = ["schedule", "step"]

BLOCK = 2**12
"""Elements that are summed in the precision of the rows before their sum is added to a float64."""
ROUGH = 1.0
"""The multiple of x in a step of unit vectors above which rounding shows in the norm of the row."""
_WORDS, _NUMBERS = CHOICES + len(Choices._fields), len(Numbers._fields)


@loops.part
def _power_below(r):
    return math.ldexp(1.0, -math.frexp(r)[1])


_row_algebra = algebra.bind(
    algebra.FUNCTIONS,
    {
        "sqrt": math.sqrt,
        "sin": math.sin,
        "cos": math.cos,
        "where": loops.where,
        "full_like": loops.full_like,
        "power_below": _power_below,
    },
    loops.part,
)
_rescaling, _clipped, _adam, _direction = (
    _row_algebra.rescaling,
    _row_algebra.clipped,
    _row_algebra.adam,
    _row_algebra.direction,
)
_motion, _carry, _combination = _row_algebra.motion, _row_algebra.carry, _row_algebra.combination


@loops.part
def _row(px, pg, pv, n, size, row, scalars, C, N, constants, zero, wide, last):
    """One step of the row at the addresses px, pg and pv (0: no vector), with sums in the type of `wide`.

    Returns False, before anything is written, if squares overflow or underflow and this is not the `last` try.
    """
    real, (radius, second, given), (tiny, eps) = type(zero), scalars, constants
    xx, xg, hh, held, square = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = loops.pointer(px + start * size, zero)
        if C.unit:
            a, b = loops.points_and_gradient(x, loops.pointer(pg + start * size, zero), m, wide)
            xx += a
            xg += b
        else:
            xx += loops.square(x, m, wide)
    if not last and not loops.fits(xx):
        return False
    if C.measures:
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            g = loops.pointer(pg + start * size, zero)
            if C.unit:
                hh += loops.square_off(loops.pointer(px + start * size, zero), g, real(xg), m, wide)
            else:
                hh += loops.square(g, m, wide)
        if not last and not loops.fits(hh):
            return False
    r, s = max(math.sqrt(xx), tiny), 1.0
    if C.store_radius:
        held = float(radius[row])
    if C.hold or C.free:
        s = _rescaling(r, held, N.low, N.high, tiny, C)
    f, length = _clipped(hh, r, N.limit, C)
    keep, take, along, ahead = N.keep, N.take, N.along, N.ahead
    if C.adam:
        square, along = _adam(length, float(second[row]), N.beta2, N.rest, N.rate, N.correction, N.eps, C.inside)
    if C.per_point:
        keep, take, along, ahead = given[4 * row], given[4 * row + 1], given[4 * row + 2], given[4 * row + 3]
    kept, vg, vx, along, ug, ux = _direction(f, s, xg, N.sign, keep, take, along, ahead, C)
    if C.unit and (C.adam or C.per_point) and C.moving:
        # Where the gradient is almost normal, x and g nearly cancel in v', and a rule like Adam scales the remaining rounding
        # errors to the length of a step. Computed twice in different orders, v' would be two vectors, and the row would leave
        # the manifold. So it is formed once, and stored.
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            x, g = loops.pointer(px + start * size, zero), loops.pointer(pg + start * size, zero)
            loops.form(x, g, loops.pointer(pv + start * size, zero), (real(kept), real(vg), real(vx)), m)
        kept, vg, vx = 1.0, 0.0, 0.0
    k_x, k_u, t_v, t_x, t_u = 1.0, 1.0, 1.0, 0.0, 0.0
    xu, uu, xv, uv = 0.0, 0.0, 0.0, 0.0
    if not C.additive:
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            x, g = loops.pointer(px + start * size, zero), loops.pointer(pg + start * size, zero)
            if C.moving:
                v = loops.pointer(pv + start * size, zero)
                to_v, to_u = (real(kept), real(vg), real(vx)), (real(along), real(ug), real(ux))
                a, b, c, d = loops.products(x, g, v, to_v, to_u, m, wide)
                xv += c
                uv += d
            else:
                a, b = loops.products_alone(x, g, real(ug), real(ux), m, wide)
            xu += a
            uu += b
        # A vector that was formed above belongs to a rule that reads lengths: its step is short, and its square fits.
        if not last and not (C.unit and (C.adam or C.per_point) and C.moving) and not uu + abs(uv) < math.inf:
            return False
        xx, xu, xv = s * s * xx, s * xu, s * xv
        k_x, k_u, norm2 = _motion(xx, xu, uu, s * r, math.sqrt(n), eps, C)
        if C.project or C.parallel:
            t_v, t_x, t_u = _carry(xx, xu, uu, xv, uv, k_x, k_u, norm2, s * r, eps, tiny, C)
    y_x, y_g, y_v, w_x, w_g, w_v = _combination(s, kept, vg, vx, along, ug, ux, k_x, k_u, t_v, t_x, t_u)
    to_x, to_v = (real(y_x), real(y_g), real(y_v)), (real(w_x), real(w_g), real(w_v))
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x, g = loops.pointer(px + start * size, zero), loops.pointer(pg + start * size, zero)
        if C.moving:
            loops.combine(x, g, loops.pointer(pv + start * size, zero), to_x, to_v, m)
        else:
            loops.combine_alone(x, g, to_x, m)
    if C.unit and abs(ux) + abs(along * vx) > ROUGH and uu > 0:
        # The gradient was almost normal, and x and g have nearly cancelled.
        yy = 0.0
        for start in range(0, n, BLOCK):
            yy += loops.square(loops.pointer(px + start * size, zero), min(BLOCK, n - start), wide)
        for start in range(0, n, BLOCK):
            loops.scale(loops.pointer(px + start * size, zero), real(1.0 / math.sqrt(yy)), min(BLOCK, n - start))
    if C.store_radius and held < 0:
        radius[row] = r
    if C.adam:
        second[row] = square
    return True


@loops.part
def _run(address, zero, narrow):
    """Take tasks until none is left; the words of a `Job` are at `address`."""
    job = numba.carray(loops.pointer(address, address), _WORDS)
    table = numba.carray(loops.pointer(job[0], job[0]), (job[1], COORDINATES + 1))
    starts = numba.carray(loops.pointer(job[2], job[2]), (job[3], 2))
    c, a = job[CHOICES:], numba.carray(loops.pointer(job[4], 0.0), _NUMBERS + 2)
    # By value: the compiler cannot know that rows are not written over the arrays, and would read them again for each row.
    C = Choices(
        c[0] != 0, c[1] != 0, c[2] != 0, c[3] != 0, c[4] != 0, c[5] != 0, c[6] != 0, c[7] != 0, c[8] != 0, c[9] != 0, c[10] != 0,
        c[11] != 0, c[12] != 0, c[13] != 0, c[14] != 0,
    )  # fmt: skip
    N = Numbers(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12])
    size, constants = job[5], (a[13], a[14])
    while True:
        task = loops.ticket(address + 8 * COUNTER)
        if task >= job[3] - 1:
            return
        matrix, row = starts[task, 0], starts[task, 1]
        last, end = starts[task + 1, 0], starts[task + 1, 1]
        while matrix < last or (matrix == last and row < end):
            points, n = table[matrix, POINTS], table[matrix, COORDINATES]
            px, pg, pv = table[matrix, X], table[matrix, GRADIENT], table[matrix, VECTOR]
            radius, second = loops.pointer(table[matrix, RADIUS], zero), loops.pointer(table[matrix, SQUARE], zero)
            scalars = radius, second, loops.pointer(table[matrix, COEFFICIENTS], 0.0)
            for i in range(row, points if matrix < last else end):
                at = i * n * size
                if not _row(px + at, pg + at, pv + at, n, size, i, scalars, C, N, constants, zero, zero, not narrow):
                    _row(px + at, pg + at, pv + at, n, size, i, scalars, C, N, constants, zero, 0.0, True)
            matrix += 1
            row = 0


_DIGEST = hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in (algebra, launch, loops))).hexdigest()


def _entry(zero, narrow, digest):
    """The kernel for coordinates of the type of `zero`.

    Numba's cache on disk depends on this file and on what the function closes over, not on what it calls: hence the `digest`
    of the other files.
    """

    def run(address):
        if digest:
            _run(address, zero, narrow)

    return run


_kernels: dict[torch.dtype, tuple[int, tuple[float, float]]] = {}
_ENTRIES = {torch.float32: _entry(np.float32(0), True, _DIGEST), torch.float64: _entry(np.float64(0), False, _DIGEST)}


def _kernel(dtype: torch.dtype) -> tuple[int, tuple[float, float]]:
    """The address of the row kernel for `dtype`, compiled or loaded, and the two constants of the dtype that it reads."""
    if dtype not in _kernels:
        info = torch.finfo(dtype)
        _kernels[dtype] = compiled(_ENTRIES[dtype]), (float(info.tiny) ** 0.5, float(info.eps))
    return _kernels[dtype]


def schedule(table: np.ndarray) -> Job:
    """The arguments that steps of `table` reuse."""
    return Job(table, len(Choices._fields), _NUMBERS + 2)


def step(table: np.ndarray, schedule: Job, update: Update, dtype: torch.dtype, device: torch.device) -> None:
    """One step of every row, in place, on as many threads as torch uses."""
    kernel, constants = _kernel(dtype)
    schedule.write(table, update, dtype.itemsize, constants)
    share(kernel, schedule.address, min(torch.get_num_threads(), len(schedule.starts) - 1))
