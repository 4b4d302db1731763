"""Row kernels for a GPU, in Triton: float16, bfloat16, float32 and float64.

A program holds a tile of `STRIPS` × `LANES` elements. A row takes as many strips as it needs, so that short rows share a
tile; it is read once, kept in registers and written once. A row longer than a tile is read twice by one program, the second
time from cache. A row longer than `PIECE` is cut into pieces: one program each sums them, and later moves them, in three
launches. All other rows of a table take one launch.

Arithmetic is in float32, for float64 points in float64. For rows longer than a tile the dot products of x, g and v are in
float64, and everything else is computed from them, so that cancellation stays below the rounding of float32. The order of a
sum depends on the length and alignment of its row alone, not on the grid or on other rows.

Addresses and numbers are copied together through pinned memory, without waiting for the device. A CUDA graph keeps both as
they were at the capture: parameters, gradients and state must keep their addresses, and a step outside the graph has to come
first. That suits SGD at a constant learning rate; groups with `capturable=True`, whose numbers may be on the device, take the
reference path.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import COORDINATES, POINTS, VECTOR, Update
from .triton_long import (
    aligned,
    arrays,
    cells,
    entry_of,
    looped,
    move,
    move_pieces,
    narrow,
    solve_rows,
    sum_pieces,
    vectors,
)

__all__ = ["schedule", "step"]

if not triton.knobs.runtime.interpret and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
    raise ImportError("it needs a C compiler for its launchers: gcc, clang or what the variable CC names")

STRIPS = 32
"""Strips per tile, a power of two, 4 at least."""
LANES = 64
"""Elements per strip, a power of two; 64 divides most rows of convolutions, whose lengths are 9 · 2^k."""
PIECE = 2**15
"""Elements that one program of a longer row takes, a multiple of a tile."""
WARPS = 8

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def schedule(table: np.ndarray) -> _Schedule:
    """The work of each program: the rows of a tile, one longer row, or a piece of one."""
    points, n = table[:, POINTS], table[:, COORDINATES]
    long = n > PIECE
    per_tile = np.maximum(STRIPS // -(-n // LANES), 1)
    matrix, index = _enumerate(np.where(long, 0, -(-points // per_tile)))
    first = index * per_tile[matrix]
    programs = np.stack([matrix, first, np.minimum(per_tile[matrix], points[matrix] - first)], axis=1)
    matrix, row = _enumerate(np.where(long, points, 0))
    count = -(-n[matrix] // PIECE)
    rows = np.stack([matrix, row, np.cumsum(count) - count, count], axis=1)
    long_row, piece = _enumerate(count)
    return _Schedule(programs, np.stack([matrix[long_row], row[long_row], piece, long_row], axis=1), rows)


def step(table: np.ndarray, schedule: _Schedule, update: Update, dtype: torch.dtype, device: torch.device) -> None:
    """One step of every row, in place, queued on the current stream of `device`.

    Raises `ValueError` if only some matrices have a vector.
    """
    real = torch.float64 if dtype == torch.float64 else torch.float32
    if ((table[:, VECTOR] != 0) != update.choices.moving).any():
        raise ValueError("some matrices have a vector and others do not; step them apart")
    info, choices = torch.finfo(real), update.choices
    common: dict[str, Any] = {"C": choices, "num_warps": WARPS, "enable_fp_fusion": True}
    if real == torch.float32 and torch.version.cuda:
        # Without a limit, branches that rarely run decide how many programs share a multiprocessor: three, or two.
        common["maxnreg"] = 80 if choices.additive else 128
    types = {"D": _TYPES[dtype], "REAL": _TYPES[real]}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        programs, pieces, rows = schedule.maps(device)
        buffer = schedule.stage(cells(update, table, info.tiny, info.eps), device)
        if len(programs):
            _rows[(len(programs),)](buffer, programs, STRIPS=STRIPS, LANES=LANES, **types, **common)
        if len(pieces):
            sums = torch.empty(len(pieces), 6, dtype=torch.float64, device=device)
            coefficients = torch.empty(len(rows), 6, dtype=torch.float64, device=device)
            span = {"D": types["D"], "PIECE": PIECE, "TILE": STRIPS * LANES}
            before = sums
            sum_pieces[(len(pieces),)](buffer, pieces, rows, before, sums, AGAIN=False, **span, **common)
            if choices.unit and (choices.adam or choices.per_point):
                sums = torch.empty_like(before)
                sum_pieces[(len(pieces),)](buffer, pieces, rows, before, sums, AGAIN=True, **span, **common)
            solve_rows[(len(rows),)](buffer, rows, before, sums, coefficients, REAL=types["REAL"], BLOCK=1024, **common)
            move_pieces[(len(pieces),)](buffer, pieces, coefficients, REAL=types["REAL"], **span, **common)


class _Schedule:
    """The work of the programs, copied to each device on demand, and the pinned memory of CUDA graphs."""

    def __init__(self, programs: np.ndarray, pieces: np.ndarray, rows: np.ndarray) -> None:
        self._host = tuple(torch.from_numpy(array.astype(np.int32)) for array in (programs, pieces, rows))
        self._maps: dict[torch.device, tuple[Tensor, ...]] = {}
        self._spare: Tensor | None = None
        self._captured: list[Tensor] = []

    def maps(self, device: torch.device) -> tuple[Tensor, ...]:
        """(matrix, first row, rows) per program, (matrix, row, piece, index of the row) per piece of the long rows, and
        (matrix, row, first piece, pieces) per long row."""
        if device not in self._maps:
            self._maps[device] = tuple(array.to(device) for array in self._host)
        return self._maps[device]

    def stage(self, cells: np.ndarray, device: torch.device) -> Tensor:
        """`cells` on `device`, without waiting for it.

        Outside a graph, torch does not reuse the pinned memory before the copy is done. A graph copies at every replay, so its
        memory is kept; it is pinned before the capture, because pinning queries the device about earlier copies.
        """
        source = torch.from_numpy(cells)
        if device.type == "cpu":
            return source
        if torch.cuda.is_current_stream_capturing():
            pinned = (
                self._spare if self._spare is not None else torch.empty(len(cells), dtype=torch.int64, pin_memory=True)
            )
            self._spare = None
            self._captured.append(pinned)
        else:
            pinned = torch.empty(len(cells), dtype=torch.int64, pin_memory=True)
            if self._spare is None:
                self._spare = torch.empty(len(cells), dtype=torch.int64, pin_memory=True)
        pinned.copy_(source)
        return pinned.to(device, non_blocking=True)


def _enumerate(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of i and j < counts[i], as two arrays."""
    i = np.repeat(np.arange(len(counts)), counts)
    return i, np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)


@triton.jit
def _total(a, same):
    """The sum over the row of each strip of a tile; a NaN in one row does not reach another."""
    part = tl.sum(a, axis=1)
    return tl.sum(tl.where(same, part[None, :], 0.0), axis=1)


@triton.jit
def _tile(entry, buffer, first, stop, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, STRIPS: tl.constexpr, LANES: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """One step of the rows from `first` on, below `stop`, as many as fit into a tile."""
    px, pg, pv, n = arrays(entry, D, ALIGNED)
    strips = ((n + LANES - 1) // LANES).to(tl.int32)
    strip = tl.arange(0, STRIPS)
    local = strip // strips
    row = first + local
    live = (row < stop) & (local < STRIPS // strips)
    column = (strip % strips)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    mask = live[:, None] & (column < n)
    at = (row * n)[:, None] + column
    same = local[:, None] == local[None, :]
    x = tl.load(px + at, mask=mask, other=0.0).to(REAL)
    g = tl.load(pg + at, mask=mask, other=0.0).to(REAL)
    v = g
    if C.moving:
        v = tl.load(pv + at, mask=mask, other=0.0).to(REAL)
    xx = _total(x * x, same)
    xg, hh, held, square = xx, xx, xx, xx
    radii = tl.load(entry + 3).to(tl.pointer_type(REAL)) + row
    squares = tl.load(entry + 4).to(tl.pointer_type(REAL)) + row
    if C.store_radius:
        held = tl.load(radii, mask=live, other=0.0)
    if C.adam:
        square = tl.load(squares, mask=live, other=0.0)
    if C.unit:
        xg = _total(x * g, same)
    if C.measures:
        h = g
        if C.unit:
            h = g - xg[:, None] * x
        hh = _total(h * h, same)
    r, s, square, kept, vg, vx, along, ug, ux = vectors(buffer, entry, row, live, xx, xg, hh, held, square, C)
    uu, xu, uv, xv = xx, xx, xx, xx
    if not C.additive:
        u = ug[:, None] * g + ux[:, None] * x
        if C.moving:
            w = kept[:, None] * v + vg[:, None] * g + vx[:, None] * x
            if C.unit and (C.adam or C.per_point) and C.moving:
                # For an almost normal gradient v' is mostly rounding error, scaled to the length of a step. Computed twice
                # in different orders, it would be two vectors, and the row would leave the manifold.
                v, kept, vg, vx = w, kept * 0.0 + 1.0, vg * 0.0, vx * 0.0
            u += along[:, None] * w
            uv, xv = _total(u * w, same), _total(x * w, same)
        uu, xu = _total(u * u, same), _total(x * u, same)
    y_x, y_g, y_v, w_x, w_g, w_v = move(buffer, xx, uu, xu, uv, xv, n, r, s, kept, vg, vx, along, ug, ux, C)
    y = y_x[:, None] * x + y_g[:, None] * g
    if C.moving:
        w = w_g[:, None] * g + w_v[:, None] * v
        if not C.additive:
            w += w_x[:, None] * x
        tl.store(pv + at, narrow(w, D), mask=mask)
        y += y_v[:, None] * v
    if C.unit:
        # Where the gradient was almost normal, x and g have nearly cancelled, and the rounding shows in the norm.
        rough = (tl.abs(ux) + tl.abs(along * vx) > 1.0) & (uu > 0)
        y /= tl.where(rough, tl.sqrt(_total(y * y, same)), 1.0)[:, None]
    tl.store(px + at, y.to(D), mask=mask)
    # Several threads may have read a row's scalars, and only one writes them.
    tl.debug_barrier()
    start = live & (strip % strips == 0)
    if C.store_radius:
        tl.store(radii, r, mask=start & (held < 0))
    if C.adam:
        tl.store(squares, square, mask=start)


@triton.jit
def _rows(buffer, programs, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, STRIPS: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """A program per entry (matrix, first row, rows) of `programs`."""
    program = programs + 3 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(program))
    first = tl.load(program + 1)
    stop = first + tl.load(program + 2)
    strips = (tl.load(entry + 7) + LANES - 1) // LANES
    wide = aligned(entry, D)
    if wide & (strips <= STRIPS):
        _tile(entry, buffer, first, stop, D, REAL, C, STRIPS, LANES, True)
    elif strips <= STRIPS // 2:
        # Without wide accesses a thread holds elements and coefficients of every row of a tile, so the tile has to be small.
        for row in range(first, stop, (STRIPS // 2 // strips).to(tl.int32)):
            _tile(entry, buffer, row, stop, D, REAL, C, STRIPS // 2, LANES, False)
    else:
        for row in range(first, stop):
            if wide:
                looped(entry, buffer, row, D, REAL, C, STRIPS * LANES, True)
            else:
                looped(entry, buffer, row, D, REAL, C, STRIPS * LANES, False)
