"""Several threads for one loop of machine code.

Threads of torch where they can be had: OpenMP's wait for their next loop by spinning, so that any others would fight
with them for the cores right after a backward pass. Otherwise, and in the child of a fork, which has lost torch's
threads and would wait for them for ever, those of a `ThreadPoolExecutor`.

Numba's own threading layers end the process in a child after a fork (OpenMP) or when two Python threads meet
(workqueue).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

__all__ = ["share"]

_forked = False
_MOST = 256
"""Threads of Python; they start as they are asked for."""
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


def share_python(work: Callable[[], None], threads: int) -> None:
    """Run `work` here and, at the same time, in up to ``threads - 1`` Python threads; returns when all of them have."""
    if threads <= 1:
        work()
        return
    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():  # it has begun
                helper.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST, thread_name_prefix="retract rows")


def _start_over() -> None:
    """After a fork the child has none of the threads."""
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
