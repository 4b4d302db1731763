"""Row kernels for the CPU, in Numba: float32 and float64. What they compute is written in `tables`.

Each row is read from memory once; the later passes over it find it in cache. Sums run over blocks of a row, whose
order does not depend on the threads. A float32 row whose squares overflow or vanish is done again with float64 sums.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .crew import share
from .jobs import CHOICES, COUNTER, NUMBERS, WORDS, Job
from .tables import COORDINATES, GRADIENT, POINTS, RADIUS, SQUARE, VECTOR, Carry, Rescale, Update, X

__all__ = ["schedule", "step"]

BLOCK = 2**12
"""Elements that are summed in the rows' own precision before their sum enters a float64."""
FEWEST = 1e-32
"""Sums of squares below are taken again in float64."""
_PROJECT, _PARALLEL = int(Carry.PROJECT), int(Carry.PARALLEL)
_HOLD, _FREE, _RECORD = int(Rescale.HOLD), int(Rescale.FREE), int(Rescale.RECORD)

# Values that are not finite keep their meaning: neither nnan nor ninf.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_part = numba.njit(**_OPTIONS)


@intrinsic
def _pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """The int `address` as a pointer to numbers of the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), codegen


@intrinsic
def _ticket(typingctx: Any, address: Any) -> Any:
    """Adds 1 to the int64 at `address`, atomically; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), codegen


@_part
def _points_and_gradient(x, g, n, zero):
    """x·x and x·g, in the precision of `zero` as all sums here."""
    real, xx, xg = type(zero), zero, zero
    for i in range(n):
        a = real(x[i])
        xx += a * a
        xg += a * real(g[i])
    return xx, xg


@_part
def _square(x, n, zero):
    """x·x."""
    real, xx = type(zero), zero
    for i in range(n):
        a = real(x[i])
        xx += a * a
    return xx


@_part
def _square_off(x, g, along, n, zero):
    """h·h with h = g − along x."""
    real, hh = type(zero), zero
    for i in range(n):
        h = real(g[i]) - real(along) * real(x[i])
        hh += h * h
    return hh


@_part
def _form(x, g, v, to_v, n):
    """v ← v' = (v, g, x)·to_v."""
    v_v, v_g, v_x = to_v
    for i in range(n):
        v[i] = v_v * v[i] + v_g * g[i] + v_x * x[i]


@_part
def _products(x, g, v, to_v, to_u, n, zero):
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


@_part
def _products_alone(x, g, ahead_g, ahead_x, n, zero):
    """x·u and u·u with u = ahead_g g + ahead_x x."""
    real, xu, uu = type(zero), zero, zero
    for i in range(n):
        a = real(x[i])
        u = real(ahead_g) * real(g[i]) + real(ahead_x) * a
        xu += a * u
        uu += u * u
    return xu, uu


@_part
def _combine(x, g, v, to_x, to_v, n):
    """x ← (x, g, v)·to_x and v ← (x, g, v)·to_v, together."""
    y_x, y_g, y_v = to_x
    w_x, w_g, w_v = to_v
    for i in range(n):
        a, b, c = x[i], g[i], v[i]
        x[i] = y_x * a + y_g * b + y_v * c
        v[i] = w_x * a + w_g * b + w_v * c


@_part
def _combine_alone(x, g, to_x, n):
    """The same without v."""
    y_x, y_g, _ = to_x
    for i in range(n):
        x[i] = y_x * x[i] + y_g * g[i]


@_part
def _fits(square):
    """Whether a sum of squares in float32 has neither overflowed nor lost digits to numbers below the normal ones."""
    return FEWEST < square < math.inf or square == 0


@_part
def _rescaling(r, radius, row, rescale, low, high, tiny):
    """The factor s of step 1; sets a held norm that is not set yet."""
    if rescale in (_HOLD, _RECORD):
        if radius[row] < 0:
            radius[row] = r
        elif rescale == _HOLD:
            s = radius[row] / r
            return s if math.isfinite(s) and r > tiny else 1.0
    elif rescale == _FREE and ((tiny < r < low) or (high < r < math.inf)):
        return math.ldexp(1.0, -math.frexp(r)[1])
    return 1.0


@_part
def _sinc(theta):
    return math.sin(theta) / theta if theta != 0 else 1.0


@_part
def _move(unit, lines, exp, carry, xx, xu, uu, xv, uv, r, n, tiny, eps):
    """Steps 6 and 7 from the products of X, u and v' and r = ‖X‖: (k_x, k_u, t_v, t_x, t_u) for which y = k_x X + k_u u
    and the vector that is stored is t_v v' + t_x X + t_u u."""
    metric = 1.0 if unit else r * r
    k_x, k_u, sinc, versine = 1.0, 1.0, 1.0, 0.5
    if exp:
        theta = math.sqrt(uu / metric)
        sinc = _sinc(theta)
        versine = 0.5 * _sinc(0.5 * theta) ** 2
        k_x, k_u = math.cos(theta), sinc
    norm2 = max(k_x * k_x * xx + 2.0 * k_x * k_u * xu + k_u * k_u * uu, 0.0)
    if unit and uu > 0:
        norm = math.sqrt(norm2)
        if not exp or not abs(norm - 1.0) <= eps * (8.0 + math.sqrt(n)):
            k_x, k_u, norm2 = k_x / norm, k_u / norm, 1.0
    yx, yv = k_x * xx + k_u * xu, k_x * xv + k_u * uv
    if carry == _PROJECT:
        share_of_y = yv if unit else yv / max(norm2, tiny * tiny)
        return k_x, k_u, 1.0, -share_of_y * k_x, -share_of_y * k_u
    if carry == _PARALLEL and exp:
        return k_x, k_u, 1.0, -uv / metric * sinc, -uv / metric * versine
    if carry == _PARALLEL:
        phi = 1.0
        if not unit:
            phi = r / max(math.sqrt(norm2), tiny)
        elif lines and yx < 0:
            phi = -1.0
        beside = metric + phi * yx
        if beside <= eps * metric:  # antipodal
            share_of_y = yv / max(norm2, tiny * tiny) / phi
            return k_x, k_u, 1.0 / phi, -share_of_y * k_x, -share_of_y * k_u
        share_of_both = phi * yv / beside
        return k_x, k_u, 1.0 / phi, -share_of_both * (1.0 / phi + k_x), -share_of_both * k_u
    return k_x, k_u, 1.0, 0.0, 0.0


@_part
def _row(px, pg, pv, n, size, row, per_point, update, zero, wide, last):
    """One row, at the addresses px, pg and pv (0: no vector), with sums in the precision of `wide`.

    Returns whether that was enough. Where squares overflow or vanish, and it is not the `last` try, nothing has moved.
    """
    real, (radius, square), (choices, amounts, (tiny, eps)) = type(zero), per_point, update
    unit, lines, exp, adam, inside, carry, rescale = choices
    sign, limit, keep, take, along, ahead, low, high, beta2, rate, correction, epsilon = amounts

    xx, xg = 0.0, 0.0
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = _pointer(px + start * size, zero)
        if unit:
            a, b = _points_and_gradient(x, _pointer(pg + start * size, zero), m, wide)
            xx += a
            xg += b
        else:
            xx += _square(x, m, wide)
    if not last and not _fits(xx):
        return False
    r = max(math.sqrt(xx), tiny)
    s, f = 1.0, 1.0
    if not unit:
        s, f = _rescaling(r, radius, row, rescale, low, high, tiny), r * r

    if adam or limit < math.inf:
        hh = 0.0
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            g = _pointer(pg + start * size, zero)
            if unit:
                hh += _square_off(_pointer(px + start * size, zero), g, real(xg), m, wide)
            else:
                hh += _square(g, m, wide)
        if not last and not _fits(hh):
            return False
        length = math.sqrt(hh) if unit else math.sqrt(hh) * r
        if limit < math.inf and not length <= limit:
            f *= limit / length
            length *= limit / length
        if adam:
            second = real(beta2 * square[row] + (1.0 - beta2) * length * length)
            square[row] = second
            if inside:
                along = -rate * correction / math.sqrt(second + epsilon)
            else:
                along = -rate / (math.sqrt(second) / correction + epsilon)

    # v' = kept v + vg g + vx x,  u = along v' + ug g + ux x
    f *= s * sign
    kept, vg, ug, vx, ux = keep * s, take * f, ahead * f, 0.0, 0.0
    if unit:
        vx, ux = -vg * xg, -ug * xg
    has_vector = pv != 0
    if unit and adam:
        # Where a gradient is almost normal, x and g all but cancel in v', and Adam brings what rounding has left of it to
        # the length of a step. Formed twice, in another order, it would be two vectors, and the row miss the manifold.
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            x, g = _pointer(px + start * size, zero), _pointer(pg + start * size, zero)
            _form(x, g, _pointer(pv + start * size, zero), (real(kept), real(vg), real(vx)), m)
        kept, vg, vx = 1.0, 0.0, 0.0
    k_x, k_u, t_v, t_x, t_u = 1.0, 1.0, 1.0, 0.0, 0.0
    if unit or exp or (carry != 0 and has_vector):
        xu, uu, xv, uv = 0.0, 0.0, 0.0, 0.0
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            x, g = _pointer(px + start * size, zero), _pointer(pg + start * size, zero)
            if has_vector:
                v = _pointer(pv + start * size, zero)
                to_v, to_u = (real(kept), real(vg), real(vx)), (real(along), real(ug), real(ux))
                a, b, c, d = _products(x, g, v, to_v, to_u, m, wide)
                xv += c
                uv += d
            else:
                a, b = _products_alone(x, g, real(ug), real(ux), m, wide)
            xu += a
            uu += b
        # Of a vector that has been formed, the square is that of a step of Adam, which is short.
        if not last and not (unit and adam) and not uu + abs(uv) < math.inf:
            return False
        k_x, k_u, t_v, t_x, t_u = _move(
            unit, lines, exp, carry, s * s * xx, s * xu, uu, s * xv, uv, s * r, n, tiny, eps
        )
    k_x *= s
    t_x *= s
    both, through = t_v + t_u * along, k_u * along if has_vector else 0.0
    to_x = real(k_x + k_u * ux + through * vx), real(k_u * ug + through * vg), real(through * kept)
    to_v = real(both * vx + t_u * ux + t_x), real(both * vg + t_u * ug), real(both * kept)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x, g = _pointer(px + start * size, zero), _pointer(pg + start * size, zero)
        if has_vector:
            _combine(x, g, _pointer(pv + start * size, zero), to_x, to_v, m)
        else:
            _combine_alone(x, g, to_x, m)
    return True


@_part
def _run(address, zero, narrow):
    """Take tasks until none is left. At `address` stand the words of a `Job`."""
    job = numba.carray(_pointer(address, address), WORDS)
    table = numba.carray(_pointer(job[0], job[0]), (job[1], COORDINATES + 1))
    starts = numba.carray(_pointer(job[2], job[2]), (job[3], 2))
    c, a = job[WORDS - CHOICES :], numba.carray(_pointer(job[4], 0.0), NUMBERS)
    # By value: from memory, which for all the compiler knows a row is written over, they would be read for each row.
    choices = c[0] != 0, c[1] != 0, c[2] != 0, c[3] != 0, c[4] != 0, c[5], c[6]
    amounts = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]
    size, update = job[5], (choices, amounts, (a[12], a[13]))
    while True:
        task = _ticket(address + 8 * COUNTER)
        if task >= job[3] - 1:
            return
        matrix, row = starts[task, 0], starts[task, 1]
        last, end = starts[task + 1, 0], starts[task + 1, 1]
        while matrix < last or (matrix == last and row < end):
            points, n = table[matrix, POINTS], table[matrix, COORDINATES]
            px, pg, pv = table[matrix, X], table[matrix, GRADIENT], table[matrix, VECTOR]
            per_point = _pointer(table[matrix, RADIUS], zero), _pointer(table[matrix, SQUARE], zero)
            for i in range(row, points if matrix < last else end):
                at = i * n * size
                v = pv + at if pv != 0 else 0
                if not _row(px + at, pg + at, v, n, size, i, per_point, update, zero, zero, not narrow):
                    _row(px + at, pg + at, v, n, size, i, per_point, update, zero, 0.0, True)
            matrix += 1
            row = 0


def _run_float32(address):
    _run(address, np.float32(0), True)


def _run_float64(address):
    _run(address, np.float64(0), False)


_kernels: dict[torch.dtype, tuple[int, tuple[float, float]]] = {}
_ENTRIES = {torch.float32: _run_float32, torch.float64: _run_float64}
_compiled: list[Any] = []


def _kernel(dtype: torch.dtype) -> tuple[int, tuple[float, float]]:
    """Address of the row kernel for `dtype`, compiled or from the disk, and the two constants of the dtype that it needs."""
    if dtype not in _kernels:
        entry = _ENTRIES[dtype]
        signature, info = types.void(types.int64), torch.finfo(dtype)  # a pointer, by another name
        try:
            compiled = numba.cfunc(signature, cache=True, **_OPTIONS)(entry)
        except (RuntimeError, OSError):  # no folder to keep it in
            compiled = numba.cfunc(signature, **_OPTIONS)(entry)
        assert compiled.address is not None
        _compiled.append(compiled)  # which owns the code at the address
        _kernels[dtype] = compiled.address, (float(info.tiny) ** 0.5, float(info.eps))
    return _kernels[dtype]


def schedule(table: np.ndarray) -> Job:
    """As `Kernel.schedule`."""
    return Job(table)


def step(table: np.ndarray, schedule: Job, update: Update, dtype: torch.dtype, device: torch.device) -> None:
    """As `Kernel.step`, with the threads that torch uses."""
    kernel, constants = _kernel(dtype)
    schedule.write(table, update, dtype, constants)
    share(kernel, schedule.address, min(torch.get_num_threads(), len(schedule.starts) - 1))
