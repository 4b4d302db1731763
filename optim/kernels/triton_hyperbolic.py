"""Row kernels for hyperbolic rows on a GPU, in Triton: float32, with sums and the algebra of a row in float64.

A launch per matrix. A program holds `ELEMENTS` elements, rows of up to `BLOCK` coordinates, and takes longer rows block by
block. It reads them twice, the second time from cache. Numbers and addresses reach the device as in `triton_rows`.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
import triton
import triton.language as tl

from . import algebra, hyperbolic
from .launch import COORDINATES, POINTS, VECTOR, HyperbolicUpdate
from .triton_long import OPERATIONS, arrays, cells, entry_of
from .triton_rows import schedule

__all__ = ["schedule", "step"]

ELEMENTS, BLOCK = 1024, 1024
"""Powers of two."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}

_algebra = algebra.bind((algebra.adam, *hyperbolic.FUNCTIONS), OPERATIONS, triton.jit)
_adam, _gradient, _steps = _algebra.adam, _algebra.gradient, _algebra.steps
_motion, _combination = _algebra.motion, _algebra.combination


def step(
    table: np.ndarray, schedule: object, update: HyperbolicUpdate, dtype: torch.dtype, device: torch.device
) -> None:
    """One step of every row, in place, queued on the current stream of `device`.

    Raises `ValueError` if only some matrices have a vector.
    """
    if ((table[:, VECTOR] != 0) != update.choices.moving).any():
        raise ValueError("some matrices have a vector and others do not; step them apart")
    info = torch.finfo(dtype)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        buffer = schedule.stage(cells(update, table, info.tiny, info.eps), device)  # type: ignore[attr-defined]
        for matrix, (points, n) in enumerate(table[:, POINTS : COORDINATES + 1].tolist()):
            block = min(triton.next_power_of_2(n), BLOCK)
            rows = ELEMENTS // block
            _matrix[(triton.cdiv(points, rows),)](buffer, matrix, ROWS=rows, BLOCK=block, C=update.choices, **OPTIONS)


@triton.jit
def _matrix(buffer, matrix, ROWS: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr):
    """One step of `ROWS` rows of a matrix."""
    at = buffer.to(tl.pointer_type(tl.float64), bitcast=True)
    sign, limit, keep, take = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    along, ahead, unit, longest = tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7)
    rounding = tl.load(at + 14)
    entry = entry_of(buffer, tl.cast(matrix, tl.int32))
    px, pg, pv, n = arrays(entry, tl.float32, False)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < tl.load(entry + 6)
    first: tl.constexpr = 1 if C.sheet else 0
    zero = tl.full((ROWS,), 0.0, tl.float64)
    xx, xg, xv, gg, gv, vv = zero, zero, zero, zero, zero, zero
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = live[:, None] & (column >= first)[None, :] & (column < n)[None, :]
        place = (row * n)[:, None] + column[None, :]
        x = tl.load(px + place, mask=mask, other=0.0).to(tl.float64)
        g = tl.load(pg + place, mask=mask, other=0.0).to(tl.float64)
        xx += tl.sum(x * x, axis=1)
        xg += tl.sum(x * g, axis=1)
        gg += tl.sum(g * g, axis=1)
        if C.moving:
            v = tl.load(pv + place, mask=mask, other=0.0).to(tl.float64)
            xv += tl.sum(x * v, axis=1)
            gv += tl.sum(g * v, axis=1)
            vv += tl.sum(v * v, axis=1)
    g0 = zero
    if C.sheet:
        g0 = tl.load(pg + row * n, mask=live, other=0.0).to(tl.float64)
    gap, share, f, length, hh, hv, vv = _gradient(xx, xg, xv, gg, gv, vv, g0, unit, limit, rounding, C)
    squares = tl.load(entry + 4).to(tl.pointer_type(tl.float32)) + row
    if C.adam:
        beta2, rest, rate = tl.load(at + 8), tl.load(at + 9), tl.load(at + 10)
        correction, eps = tl.load(at + 11), tl.load(at + 12)
        square = tl.load(squares, mask=live, other=0.0).to(tl.float64)
        square, along = _adam(length, square, beta2, rest, rate, correction, eps, C.inside)
        tl.store(squares, square.to(tl.float32), mask=live)
    a, b, c, d = _steps(f, sign, keep, take, along, ahead)
    uu = c * c * vv + 2.0 * c * d * hv + d * d * hh
    uw = c * a * vv + (c * b + d * a) * hv + d * b * hh
    k_x, k_u, t_v, t_x, t_u, _ = _motion(gap, xx, c * xv + d * xg, uu, a * xv + b * xg, uw, unit, longest, C)
    y_x, y_g, y_v, w_x, w_g, w_v = _combination(share, a, b, c, d, k_x, k_u, t_v, t_x, t_u)
    yy, yw = zero, zero
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = live[:, None] & (column >= first)[None, :] & (column < n)[None, :]
        place = (row * n)[:, None] + column[None, :]
        x = tl.load(px + place, mask=mask, other=0.0).to(tl.float64)
        g = tl.load(pg + place, mask=mask, other=0.0).to(tl.float64)
        y = y_x[:, None] * x + y_g[:, None] * g
        if C.moving:
            v = tl.load(pv + place, mask=mask, other=0.0).to(tl.float64)
            y += y_v[:, None] * v
            w = (w_x[:, None] * x + w_g[:, None] * g + w_v[:, None] * v).to(tl.float32)
            tl.store(pv + place, w, mask=mask)
            yw += tl.sum(y * w.to(tl.float64), axis=1)
        y = y.to(tl.float32)
        tl.store(px + place, y, mask=mask)
        y = y.to(tl.float64)
        yy += tl.sum(y * y, axis=1)
    if C.sheet:  # the first coordinates follow from the others
        time = tl.sqrt(unit + yy)
        tl.store(px + row * n, time.to(tl.float32), mask=live & (uu != 0))
        if C.moving:
            tl.store(pv + row * n, (yw / time).to(tl.float32), mask=live)
    else:  # points at the boundary after rounding
        out = live & (1.0 - yy / unit <= 2.0 * rounding)
        if tl.max(out.to(tl.int32), axis=0) > 0:
            tl.debug_barrier()
            inside = (1.0 - 2.0 * rounding) * tl.sqrt(unit / tl.where(out, yy, unit))
            for start in range(0, n, BLOCK):
                column = start + tl.arange(0, BLOCK)
                mask = out[:, None] & (column < n)[None, :]
                place = (row * n)[:, None] + column[None, :]
                y = tl.load(px + place, mask=mask, other=0.0).to(tl.float64)
                tl.store(px + place, (inside[:, None] * y).to(tl.float32), mask=mask)
