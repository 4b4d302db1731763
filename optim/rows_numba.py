"""Row kernels for the CPU, in Numba: float32 and float64. What they compute is written in `tables`.

Each row is read from memory once; the later passes over it find it in cache. Sums run over blocks of a row, whose
order does not depend on the threads.
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
from .tables import COORDINATES, GRADIENT, POINTS, RADIUS, SQUARE, VECTOR, Carry, Rescale, Update, X

__all__ = ["schedule", "step"]

TASK = 2**15
"""Elements per task, about; 4,096 cost a tenth more on ResNet-50's weights."""
BLOCK = 2**12
"""Elements that are summed in the rows' own precision before their sum enters a float64."""
CHOICES = 7
"""How many of `Update`'s fields are choices."""
NUMBERS = len(Update._fields) - CHOICES + 2
"""`Update`'s other fields, and two constants of the dtype: √tiny and ε."""
WORDS = 7 + CHOICES
"""Of a job, as `step` writes it: the choices last, and before them the counter of tasks taken."""

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
    """x·x and x·g."""
    xx, xg = zero, zero
    for i in range(n):
        xx += x[i] * x[i]
        xg += x[i] * g[i]
    return xx, xg


@_part
def _square(x, n, zero):
    """x·x."""
    xx = zero
    for i in range(n):
        xx += x[i] * x[i]
    return xx


@_part
def _square_off(x, g, along, n, zero):
    """h·h with h = g − along x."""
    hh = zero
    for i in range(n):
        h = g[i] - along * x[i]
        hh += h * h
    return hh


@_part
def _products(x, g, v, keep, by_g, by_x, along, ahead_g, ahead_x, n, zero):
    """u·u, x·u, u·v', x·v' with v' = keep v + by_g g + by_x x and u = along v' + ahead_g g + ahead_x x."""
    uu, xu, uv, xv = zero, zero, zero, zero
    for i in range(n):
        w = keep * v[i] + by_g * g[i] + by_x * x[i]
        u = along * w + ahead_g * g[i] + ahead_x * x[i]
        uu += u * u
        xu += x[i] * u
        uv += u * w
        xv += x[i] * w
    return uu, xu, uv, xv


@_part
def _products_alone(x, g, ahead_g, ahead_x, n, zero):
    """u·u and x·u with u = ahead_g g + ahead_x x."""
    uu, xu = zero, zero
    for i in range(n):
        u = ahead_g * g[i] + ahead_x * x[i]
        uu += u * u
        xu += x[i] * u
    return uu, xu


@_part
def _combine(x, g, v, y_x, y_g, y_v, w_x, w_g, w_v, n):
    """x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v."""
    for i in range(n):
        a, b, c = x[i], g[i], v[i]
        x[i] = y_x * a + y_g * b + y_v * c
        v[i] = w_x * a + w_g * b + w_v * c


@_part
def _combine_level(x, g, v, y_x, y_g, y_v, w_g, w_v, n):
    """The same with w_x = 0."""
    for i in range(n):
        b, c = g[i], v[i]
        x[i] = y_x * x[i] + y_g * b + y_v * c
        v[i] = w_g * b + w_v * c


@_part
def _combine_alone(x, g, y_x, y_g, n):
    """x ← y_x x + y_g g."""
    for i in range(n):
        x[i] = y_x * x[i] + y_g * g[i]


@_part
def _rescaling(r, radius, row, rescale, low, high):
    """The factor s of step 1; sets a held norm that is not set yet."""
    if rescale in (_HOLD, _RECORD):
        if radius[row] < 0:
            radius[row] = r
        elif rescale == _HOLD:
            s = radius[row] / r
            return s if math.isfinite(s) else 1.0
    elif rescale == _FREE and ((0 < r < low) or (high < r < math.inf)):
        return math.ldexp(1.0, -math.frexp(r)[1])
    return 1.0


@_part
def _sinc(theta):
    return math.sin(theta) / theta if theta != 0 else 1.0


@_part
def _row(px, pg, pv, n, size, row, radius, square, choices, amounts, constants, zero):
    """One row, at the addresses px, pg and pv (0: no vector)."""
    real = type(zero)
    tiny, eps = constants
    unit, lines, exp, adam, inside, carry, rescale = choices
    sign, limit, keep, take, along, ahead, low, high, beta2, rate, correction, epsilon = amounts

    xx, xg = 0.0, 0.0
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = _pointer(px + start * size, zero)
        if unit:
            g = _pointer(pg + start * size, zero)
            a, b = _points_and_gradient(x, g, m, zero)
            xx += a
            xg += b
        else:
            xx += _square(x, m, zero)
    r = max(math.sqrt(xx), tiny)
    s = 1.0
    f = 1.0
    if not unit:
        f = r * r
        s = _rescaling(r, radius, row, rescale, low, high)

    # Adam needs the length of the gradient, clipping too.
    length = 0.0
    if adam or limit < math.inf:
        hh = 0.0
        off = real(xg)
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            g = _pointer(pg + start * size, zero)
            if unit:
                x = _pointer(px + start * size, zero)
                hh += _square_off(x, g, off, m, zero)
            else:
                hh += _square(g, m, zero)
        length = math.sqrt(hh)
        if not unit:
            length *= r
        if limit < math.inf and not length <= limit:
            f *= limit / length
            length *= limit / length
    if adam:
        second = beta2 * square[row] + (1.0 - beta2) * length * length
        square[row] = second
        second = real(second)
        if inside:
            along = -rate * correction / math.sqrt(second + epsilon)
        else:
            along = -rate / (math.sqrt(second) / correction + epsilon)

    # v' = kept v + vg g + vx x,  u = along v' + ug g + ux x
    f *= s * sign
    vg, ug = take * f, ahead * f
    vx, ux = 0.0, 0.0
    if unit:
        vx, ux = -vg * xg, -ug * xg
    kept = keep * s
    has_vector = pv != 0
    level = not unit and not exp and (carry == 0 or not has_vector)
    k_x, k_u = 1.0, 1.0
    t_v, t_x, t_u = 1.0, 0.0, 0.0
    if not level:
        uu, xu, uv, xv = 0.0, 0.0, 0.0, 0.0
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            x = _pointer(px + start * size, zero)
            g = _pointer(pg + start * size, zero)
            if has_vector:
                v = _pointer(pv + start * size, zero)
                a, b, c, d = _products(
                    x, g, v, real(kept), real(vg), real(vx), real(along), real(ug), real(ux), m, zero
                )
                uu += a
                xu += b
                uv += c
                xv += d
            else:
                a, b = _products_alone(x, g, real(ug), real(ux), m, zero)
                uu += a
                xu += b
        # X = s x
        xx *= s * s
        xu *= s
        xv *= s
        metric = 1.0 if unit else r * r * s * s
        sinc, versine = 1.0, 0.5
        if exp:
            theta = math.sqrt(uu / metric)
            sinc = _sinc(theta)
            versine = 0.5 * _sinc(0.5 * theta) ** 2
            k_x, k_u = math.cos(theta), sinc
        norm2 = k_x * k_x * xx + 2.0 * k_x * k_u * xu + k_u * k_u * uu
        if unit:
            norm = math.sqrt(norm2)
            if uu > 0 and (not exp or not abs(norm - 1.0) <= eps * (8.0 + math.sqrt(n))):
                k_x /= norm
                k_u /= norm
                norm2 = 1.0
        if carry == _PROJECT:
            tau = k_x * xv + k_u * uv
            if not unit:
                tau /= max(norm2, tiny * tiny)
            t_x, t_u = -tau * k_x, -tau * k_u
        elif carry == _PARALLEL and exp:
            part = -uv / metric
            t_x, t_u = part * sinc, part * versine
        elif carry == _PARALLEL:
            phi = 1.0
            if not unit:
                phi = r * s / max(math.sqrt(norm2), tiny)
            elif lines and k_x * xx + k_u * xu < 0:
                phi = -1.0
            part = phi * (k_x * xv + k_u * uv) / (metric + phi * (k_x * xx + k_u * xu))
            t_v = 1.0 / phi
            t_x = -part * (1.0 / phi + k_x)
            t_u = -part * k_u
    k_x *= s
    t_x *= s
    y_x, y_g, y_v = k_x + k_u * (ux + along * vx), k_u * (ug + along * vg), k_u * along * kept
    if not has_vector:
        y_x, y_g = k_x + k_u * ux, k_u * ug
    both = t_v + t_u * along
    w_x, w_g, w_v = both * vx + t_u * ux + t_x, both * vg + t_u * ug, both * kept
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = _pointer(px + start * size, zero)
        g = _pointer(pg + start * size, zero)
        if not has_vector:
            _combine_alone(x, g, real(y_x), real(y_g), m)
            continue
        v = _pointer(pv + start * size, zero)
        if level:
            _combine_level(x, g, v, real(y_x), real(y_g), real(y_v), real(w_g), real(w_v), m)
        else:
            _combine(x, g, v, real(y_x), real(y_g), real(y_v), real(w_x), real(w_g), real(w_v), m)


@_part
def _run(address, zero):
    """Take tasks until none is left. At `address` stand the words that `step` writes."""
    job = numba.carray(_pointer(address, address), WORDS)
    table = numba.carray(_pointer(job[0], job[0]), (job[1], COORDINATES + 1))
    starts = numba.carray(_pointer(job[2], job[2]), (job[3], 2))
    numbers = numba.carray(_pointer(job[4], 0.0), NUMBERS)
    size, counter, c, a = job[5], address + 48, job[7:], numbers
    # Numbers by value: from memory, which a row might be written over, they would be read again for each row.
    choices = c[0] != 0, c[1] != 0, c[2] != 0, c[3] != 0, c[4] != 0, c[5], c[6]
    amounts = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]
    constants = a[12], a[13]
    while True:
        task = _ticket(counter)
        if task >= job[3] - 1:
            return
        matrix, row = starts[task, 0], starts[task, 1]
        last, end = starts[task + 1, 0], starts[task + 1, 1]
        while matrix < last or (matrix == last and row < end):
            points, n = table[matrix, POINTS], table[matrix, COORDINATES]
            stop = points if matrix < last else end
            px, pg, pv = table[matrix, X], table[matrix, GRADIENT], table[matrix, VECTOR]
            radius, square = _pointer(table[matrix, RADIUS], zero), _pointer(table[matrix, SQUARE], zero)
            stride = n * size
            for i in range(row, stop):
                vector = pv + i * stride if pv != 0 else 0
                _row(
                    px + i * stride,
                    pg + i * stride,
                    vector,
                    n,
                    size,
                    i,
                    radius,
                    square,
                    choices,
                    amounts,
                    constants,
                    zero,
                )
            matrix += 1
            row = 0


def _run_float32(address):
    _run(address, np.float32(0))


def _run_float64(address):
    _run(address, np.float64(0))


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


def schedule(table: np.ndarray) -> np.ndarray:
    """Where each task starts, (tasks + 1, 2): matrix and row. Tasks are whole rows, of about `TASK` elements."""
    starts, filled = [(0, 0)], 0
    sizes = table[:, [POINTS, COORDINATES]].tolist()
    for matrix, (points, n) in enumerate(sizes):
        row = 0
        while row < points:
            rows = min(points - row, max(1, -(-(TASK - filled) // n)))
            row += rows
            filled += rows * n
            if filled >= TASK:
                starts.append((matrix, row))
                filled = 0
    if filled:
        starts.append((len(sizes) - 1, sizes[-1][0]))
    return np.array(starts, dtype=np.int64)


def step(table: np.ndarray, schedule: np.ndarray, update: Update, dtype: torch.dtype, device: torch.device) -> None:
    """As `Kernel.step`, with the threads that torch uses."""
    kernel, constants = _kernel(dtype)
    numbers = np.array((*update[CHOICES:], *constants))
    pieces = (_at(table), len(table), _at(schedule), len(schedule), _at(numbers), dtype.itemsize, 0)
    job = np.array((*pieces, *update[:CHOICES]), dtype=np.int64)
    share(kernel, _at(job), min(torch.get_num_threads(), len(schedule) - 1))


def _at(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
