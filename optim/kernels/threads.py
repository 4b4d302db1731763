"""Several threads for one loop of machine code.

Threads of torch where they can be had: OpenMP's wait for their next loop by spinning, so that any others would fight
with them for the cores right after a backward pass. Otherwise, and in the child of a fork, which has lost torch's
threads and would wait for them for ever, Python threads that wait in a queue.

Numba's own threading layers end the process in a child after a fork (OpenMP) or when two Python threads meet
(workqueue).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["share"]

_queue: SimpleQueue[_Shift] = SimpleQueue()
_size = 0
_growing = threading.Lock()
_forked = False
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share(loop: int, argument: int, threads: int) -> None:
    """Call the C function at the address `loop` with the pointer `argument` in up to `threads` threads at once, this one
    among them; returns when all calls have.

    The function takes what is left to do from a counter of its own until nothing is left, so that one call does it
    all if no other comes.
    """
    parallel = None if _forked else _torch_parallel()
    if threads > 1 and parallel is not None:
        parallel(loop, argument, threads, 0)
    else:
        share_python(partial(_ENTRY(loop), argument), threads)


@cache
def _torch_parallel() -> Callable[[int, int, int, int], Any] | None:
    """``GOMP_parallel`` of the OpenMP library that torch is linked to, or None where it is not linked to one."""
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    found.restype = None
    return found


class _Shift:
    """One loop, and who is at it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.gate = threading.Lock()
        self.open = True
        self.busy = 0
        self.left: SimpleQueue[BaseException | None] = SimpleQueue()

    def join(self) -> None:
        """Help, unless it is over already."""
        with self.gate:
            if not self.open:
                return
            self.busy += 1
        error = None
        try:
            self.work()
        except BaseException as raised:
            error = raised
        self.left.put(error)

    def close(self) -> None:
        """Wait for everybody who has joined, and let nobody join any more."""
        with self.gate:
            self.open = False
        for error in [self.left.get() for _ in range(self.busy)]:
            if error is not None:
                raise error


def share_python(work: Callable[[], None], threads: int) -> None:
    """Run `work` here and, at the same time, in up to ``threads - 1`` Python threads; returns when all of them have."""
    if threads <= 1:
        work()
        return
    _grow(threads - 1)
    shift = _Shift(work)
    for _ in range(threads - 1):
        _queue.put(shift)
    try:
        work()
    finally:
        shift.close()


def _grow(size: int) -> None:
    global _size
    if _size >= size:
        return
    with _growing:
        while _size < size:
            threading.Thread(target=_serve, name="retract rows", daemon=True).start()
            _size += 1


def _serve() -> None:
    queue = _queue
    while True:
        queue.get().join()


def _start_over() -> None:
    """After a fork the child has none of the threads, and whatever they held stays locked."""
    global _queue, _size, _growing, _forked
    _queue, _size, _growing, _forked = SimpleQueue(), 0, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
