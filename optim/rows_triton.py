"""Row kernels for a GPU, in Triton: float16, bfloat16, float32 and float64. What they compute is written in `tables`.

A program holds a tile of `STRIPS` × `LANES` elements. A row takes as many strips as it needs, so that short rows share
a tile without wasting it; it is read once, kept in registers and written once. A row longer than a tile is read twice
by one program, the second time from cache; one longer than `PIECE` is cut into pieces, which are summed and then moved
by a program each, in three launches. All other rows of a table are one launch.

Arithmetic is in float32, for float64 points in float64. Rows longer than a tile form the dot products of x, g and v in
float64 and take everything else from them: what cancels there stays below float32. The order of every sum follows from
the length of its row and from where it lies, so results do not depend on the grid or on neighbours.

Addresses and numbers travel together through pinned memory, without waiting for the device. A CUDA graph keeps both as
they were when it was captured: parameters, gradients and state must stay where they are, and a step outside the graph
has to come first. That suits SGD at a constant learning rate; groups with `capturable=True`, whose numbers may lie on
the device, run on the reference path.
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

from .algebra_triton import choices, entry_of, head, move, solve, vectors
from .tables import COORDINATES, POINTS, VECTOR, Update

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
    """What each program does. A program takes the rows that go into a tile, or one longer row, or a piece of one."""
    points, n = table[:, POINTS], table[:, COORDINATES]
    long = n > PIECE
    per = np.maximum(STRIPS // -(-n // LANES), 1)
    matrix, index = _enumerate(np.where(long, 0, -(-points // per)))
    first = index * per[matrix]
    programs = np.stack([matrix, first, np.minimum(per[matrix], points[matrix] - first)], axis=1)
    matrix, row = _enumerate(np.where(long, points, 0))
    count = -(-n[matrix] // PIECE)
    rows = np.stack([matrix, row, np.cumsum(count) - count, count], axis=1)
    which, piece = _enumerate(count)
    return _Schedule(programs, np.stack([matrix[which], row[which], piece, which], axis=1), rows)


def step(table: np.ndarray, schedule: _Schedule, update: Update, dtype: torch.dtype, device: torch.device) -> None:
    """As `Kernel.step`; queued on the current stream of `device`."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    moving = table[:, VECTOR] != 0
    if moving.any() != moving.all():
        raise ValueError("some matrices have a vector and others do not; step them apart")
    info, its = torch.finfo(real), choices(update, moving=bool(moving.all()))
    cells = np.concatenate([np.array(head(update, info.tiny, info.eps)).view(np.int64), table.ravel()])
    common: dict[str, Any] = {"C": its, "num_warps": WARPS, "enable_fp_fusion": True}
    if real == torch.float32 and torch.version.cuda:
        # Otherwise branches that hardly ever run decide how many programs share a multiprocessor: three, or two.
        common["maxnreg"] = 80 if its.level else 128
    types = {"D": _TYPES[dtype], "REAL": _TYPES[real]}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        programs, pieces, rows = schedule.maps(device)
        buffer = schedule.stage(cells, device)
        if len(programs):
            _rows[(len(programs),)](buffer, programs, STRIPS=STRIPS, LANES=LANES, **types, **common)
        if len(pieces):
            sums = torch.empty(len(pieces), 6, dtype=torch.float64, device=device)
            coefficients = torch.empty(len(rows), 6, dtype=torch.float64, device=device)
            span = {"D": types["D"], "PIECE": PIECE, "TILE": STRIPS * LANES}
            before = sums
            _sum_pieces[(len(pieces),)](buffer, pieces, rows, before, sums, AGAIN=False, **span, **common)
            if its.unit and its.adam:
                sums = torch.empty_like(before)
                _sum_pieces[(len(pieces),)](buffer, pieces, rows, before, sums, AGAIN=True, **span, **common)
            _solve_rows[(len(rows),)](
                buffer, rows, before, sums, coefficients, REAL=types["REAL"], BLOCK=1024, **common
            )
            _move_pieces[(len(pieces),)](buffer, pieces, coefficients, REAL=types["REAL"], **span, **common)


class _Schedule:
    """Which program does what, on every device that asks; and pinned memory that outlives a CUDA graph."""

    def __init__(self, programs: np.ndarray, pieces: np.ndarray, rows: np.ndarray) -> None:
        self._host = tuple(torch.from_numpy(each.astype(np.int32)) for each in (programs, pieces, rows))
        self._maps: dict[torch.device, tuple[Tensor, ...]] = {}
        self._spare: Tensor | None = None
        self._captured: list[Tensor] = []

    def maps(self, device: torch.device) -> tuple[Tensor, ...]:
        """(matrix, first row, rows) per program, (matrix, row, piece, index of the row) per piece of the long rows, and
        (matrix, row, first piece, pieces) per long row."""
        if device not in self._maps:
            self._maps[device] = tuple(each.to(device) for each in self._host)
        return self._maps[device]

    def stage(self, cells: np.ndarray, device: torch.device) -> Tensor:
        """`cells` on `device`, without waiting for it.

        A step of its own pins memory that torch does not hand out again before the copy is done. A graph copies at every
        replay, so its memory stays, and is pinned ahead, because that asks the device about earlier copies.
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
    """i and j for all i, and j < counts[i]."""
    i = np.repeat(np.arange(len(counts)), counts)
    return i, np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)


@triton.jit
def _arrays(entry, D: tl.constexpr, ALIGNED: tl.constexpr):
    """Points, gradient and vector of the matrix at `entry`, and n, with what the compiler may know of them."""
    x = tl.load(entry).to(tl.pointer_type(D))
    g = tl.load(entry + 1).to(tl.pointer_type(D))
    v = tl.load(entry + 2).to(tl.pointer_type(D))
    n = tl.load(entry + 6)
    if ALIGNED:
        x, g, v = tl.multiple_of(x, 16), tl.multiple_of(g, 16), tl.multiple_of(v, 16)
        n = n // (128 // D.primitive_bitwidth) * (128 // D.primitive_bitwidth)
    return x, g, v, n


@triton.jit
def _aligned(entry, D: tl.constexpr):
    """Whether every row of the three arrays starts at a multiple of 16 bytes, the widest access there is."""
    bits = tl.load(entry) | tl.load(entry + 1) | tl.load(entry + 2) | (tl.load(entry + 6) * (D.primitive_bitwidth // 8))
    return bits % 16 == 0


@triton.jit
def _total(a, same):
    """Sums over the rows of a tile, for each strip that of the row it belongs to. No row sees another's NaN."""
    part = tl.sum(a, axis=1)
    return tl.sum(tl.where(same, part[None, :], 0.0), axis=1)


@triton.jit
def _tile(entry, buffer, first, stop, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, STRIPS: tl.constexpr, LANES: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """Rows from `first` on, below `stop`, as many as go into a tile."""
    px, pg, pv, n = _arrays(entry, D, ALIGNED)
    strips = ((n + LANES - 1) // LANES).to(tl.int32)
    strip = tl.arange(0, STRIPS)
    own = strip // strips
    row = first + own
    live = (row < stop) & (own < STRIPS // strips)
    column = (strip % strips)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    mask = live[:, None] & (column < n)
    at = (row * n)[:, None] + column
    same = own[:, None] == own[None, :]
    x = tl.load(px + at, mask=mask, other=0.0).to(REAL)
    g = tl.load(pg + at, mask=mask, other=0.0).to(REAL)
    v = g
    if C.moving:
        v = tl.load(pv + at, mask=mask, other=0.0).to(REAL)
    xx = _total(x * x, same)
    xg, hh, held, square = xx, xx, xx, xx
    radii = tl.load(entry + 3).to(tl.pointer_type(REAL)) + row
    squares = tl.load(entry + 4).to(tl.pointer_type(REAL)) + row
    if C.records:
        held = tl.load(radii, mask=live, other=0.0)
    if C.adam:
        square = tl.load(squares, mask=live, other=0.0)
    if C.unit:
        xg = _total(x * g, same)
    if C.adam or C.clip:
        h = g
        if C.unit:
            h = g - xg[:, None] * x
        hh = _total(h * h, same)
    r, s, square, kept, vg, vx, along, ug, ux, tiny, rounding = vectors(buffer, xx, xg, hh, held, square, C)
    uu, xu, uv, xv = xx, xx, xx, xx
    if not C.level:
        u = ug[:, None] * g + ux[:, None] * x
        if C.moving:
            w = kept[:, None] * v + vg[:, None] * g + vx[:, None] * x
            if C.unit and C.adam:
                # Of an almost normal gradient v' is little more than rounding, brought to the length of a step. Formed
                # twice, in another order, it would be two vectors, and the row miss the manifold.
                v, kept, vg, vx = w, kept * 0.0 + 1.0, vg * 0.0, vx * 0.0
            u += along[:, None] * w
            uv, xv = _total(u * w, same), _total(x * w, same)
        uu, xu = _total(u * u, same), _total(x * u, same)
    y_x, y_g, y_v, w_x, w_g, w_v = move(xx, uu, xu, uv, xv, n, r, s, kept, vg, vx, along, ug, ux, tiny, rounding, C)
    y = y_x[:, None] * x + y_g[:, None] * g
    if C.moving:
        w = w_g[:, None] * g + w_v[:, None] * v
        if not C.level:
            w += w_x[:, None] * x
        tl.store(pv + at, w.to(D), mask=mask)
        y += y_v[:, None] * v
    tl.store(px + at, y.to(D), mask=mask)
    # Several threads may have read a row's numbers, and only one writes them.
    tl.debug_barrier()
    start = live & (strip % strips == 0)
    if C.records:
        tl.store(radii, r, mask=start & (held < 0))
    if C.adam:
        tl.store(squares, square, mask=start)


@triton.jit
def _gram(entry, row, begin, end, part, D: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr):
    """x·x, x·g, g·g, x·v, g·v, v·v over the coordinates from `begin` to `end` of a row, those that are needed; with
    g − part x in place of g for Adam on unit vectors."""
    px, pg, pv, n = _arrays(entry, D, ALIGNED)
    zero = tl.cast(0.0, tl.float64)
    xx, xg, gg, xv, gv, vv = zero, zero, zero, zero, zero, zero
    for start in range(begin, end, TILE):
        column = start + tl.arange(0, TILE)
        x = tl.load(px + row * n + column, mask=column < n, other=0.0).to(tl.float64)
        xx += tl.sum(x * x)
        if not C.level or C.adam or C.clip:
            g = tl.load(pg + row * n + column, mask=column < n, other=0.0).to(tl.float64)
            if C.unit and C.adam:
                g -= part * x
            xg += tl.sum(x * g)
            gg += tl.sum(g * g)
        if C.moving and not C.level:
            v = tl.load(pv + row * n + column, mask=column < n, other=0.0).to(tl.float64)
            xv += tl.sum(x * v)
            gv += tl.sum(g * v)
            vv += tl.sum(v * v)
    return xx, xg, gg, xv, gv, vv


@triton.jit
def _combine(entry, row, begin, end, y_x, y_g, y_v, w_x, w_g, w_v, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """x ← y_x x + y_g g + y_v v and v ← w_x x + w_g g + w_v v over the coordinates from `begin` to `end` of a row; in double
    precision where x and g may all but cancel, and Adam magnifies what is left."""
    wide: tl.constexpr = tl.float64 if C.unit and C.adam else REAL
    px, pg, pv, n = _arrays(entry, D, ALIGNED)
    for start in range(begin, end, TILE):
        column = start + tl.arange(0, TILE)
        x = tl.load(px + row * n + column, mask=column < n, other=0.0).to(wide)
        g = tl.load(pg + row * n + column, mask=column < n, other=0.0).to(wide)
        y = y_x.to(wide) * x + y_g.to(wide) * g
        if C.moving:
            v = tl.load(pv + row * n + column, mask=column < n, other=0.0).to(wide)
            w = w_g.to(wide) * g + w_v.to(wide) * v
            if not C.level:
                w += w_x.to(wide) * x
            tl.store(pv + row * n + column, w.to(REAL).to(D), mask=column < n)
            y += y_v.to(wide) * v
        tl.store(px + row * n + column, y.to(REAL).to(D), mask=column < n)


@triton.jit
def _looped(entry, buffer, row, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """One row, tile by tile."""
    n = tl.load(entry + 6)
    part = tl.cast(0.0, tl.float64)
    xx, xg, gg, xv, gv, vv = _gram(entry, row, 0, n, part, D, C, TILE, ALIGNED)
    if C.unit and C.adam:
        # Of an almost normal gradient g·g − (x·g)² is rounding, and Adam brings its root to the length of a step.
        part = xg
        xx, xg, gg, xv, gv, vv = _gram(entry, row, 0, n, part, D, C, TILE, ALIGNED)
    y_x, y_g, y_v, w_x, w_g, w_v = solve(entry, buffer, row, xx, xg, gg, xv, gv, vv, part, REAL, C)
    _combine(entry, row, 0, n, y_x, y_g, y_v, w_x, w_g, w_v, D, REAL, C, TILE, ALIGNED)


@triton.jit
def _rows(buffer, programs, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, STRIPS: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """A program per entry (matrix, first row, rows) of `programs`."""
    program = programs + 3 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(program))
    first = tl.load(program + 1)
    stop = first + tl.load(program + 2)
    strips = (tl.load(entry + 6) + LANES - 1) // LANES
    aligned = _aligned(entry, D)
    if aligned & (strips <= STRIPS):
        _tile(entry, buffer, first, stop, D, REAL, C, STRIPS, LANES, True)
    elif strips <= STRIPS // 2:
        # Without wide accesses a thread has elements of every row of a tile, and numbers for each: it needs a small one.
        for row in range(first, stop, (STRIPS // 2 // strips).to(tl.int32)):
            _tile(entry, buffer, row, stop, D, REAL, C, STRIPS // 2, LANES, False)
    else:
        for row in range(first, stop):
            if aligned:
                _looped(entry, buffer, row, D, REAL, C, STRIPS * LANES, True)
            else:
                _looped(entry, buffer, row, D, REAL, C, STRIPS * LANES, False)


@triton.jit
def _sum_pieces(buffer, pieces, rows, before, sums, D: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr, AGAIN: tl.constexpr):  # fmt: skip
    """The dot products of each entry (matrix, row, piece, index of its row) of `pieces`, into `sums`; `AGAIN` without the part
    of g along x, which the sums `before` tell."""
    piece = pieces + 4 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(piece))
    row = tl.load(piece + 1)
    begin = tl.load(piece + 2).to(tl.int64) * PIECE
    end = tl.minimum(tl.load(entry + 6), begin + PIECE)
    part = tl.cast(0.0, tl.float64)
    if AGAIN:
        its = rows + 4 * tl.load(piece + 3)
        part = _along(before, tl.load(its + 2), tl.load(its + 3))
    if _aligned(entry, D):
        xx, xg, gg, xv, gv, vv = _gram(entry, row, begin, end, part, D, C, TILE, True)
    else:
        xx, xg, gg, xv, gv, vv = _gram(entry, row, begin, end, part, D, C, TILE, False)
    _put(sums, tl.program_id(0), xx, xg, gg, xv, gv, vv)


@triton.jit
def _along(sums, first, count):
    """x·g of a row from the sums over its `count` pieces from `first` on."""
    part = tl.cast(0.0, tl.float64)
    for index in range(count):
        part += tl.load(sums + (first + index).to(tl.int64) * 6 + 1)
    return part


@triton.jit
def _solve_rows(buffer, rows, before, sums, coefficients, REAL: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """The coefficients of each entry (matrix, row, first piece, pieces) of `rows`."""
    its = rows + 4 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(its))
    first, count = tl.load(its + 2), tl.load(its + 3)
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
    if C.unit and C.adam:
        along = _along(before, first, count)
    y_x, y_g, y_v, w_x, w_g, w_v = solve(entry, buffer, tl.load(its + 1), xx, xg, gg, xv, gv, vv, along, REAL, C)
    _put(coefficients, tl.program_id(0), y_x, y_g, y_v, w_x, w_g, w_v)


@triton.jit
def _move_pieces(buffer, pieces, coefficients, D: tl.constexpr, REAL: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """The linear combinations over each piece."""
    piece = pieces + 4 * tl.program_id(0)
    entry = entry_of(buffer, tl.load(piece))
    row = tl.load(piece + 1)
    begin = tl.load(piece + 2).to(tl.int64) * PIECE
    end = tl.minimum(tl.load(entry + 6), begin + PIECE)
    its = coefficients + tl.load(piece + 3) * 6
    y_x, y_g, y_v = tl.load(its), tl.load(its + 1), tl.load(its + 2)
    w_x, w_g, w_v = tl.load(its + 3), tl.load(its + 4), tl.load(its + 5)
    if _aligned(entry, D):
        _combine(entry, row, begin, end, y_x, y_g, y_v, w_x, w_g, w_v, D, REAL, C, TILE, True)
    else:
        _combine(entry, row, begin, end, y_x, y_g, y_v, w_x, w_g, w_v, D, REAL, C, TILE, False)


@triton.jit
def _put(out, index, a, b, c, d, e, f):
    its = out + index.to(tl.int64) * 6
    tl.store(its, a)
    tl.store(its + 1, b)
    tl.store(its + 2, c)
    tl.store(its + 3, d)
    tl.store(its + 4, e)
    tl.store(its + 5, f)
