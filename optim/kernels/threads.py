"""Threads for a loop in machine code.

They are torch's OpenMP threads where torch has them: those spin while they wait, and would compete for the cores with any
others right after a backward pass. Otherwise they belong to a `ThreadPoolExecutor`, also in the child of a fork, which has
lost torch's threads and would wait for them forever.

Numba's threading layers abort the process in the child of a fork (OpenMP), or when two Python threads call them at once
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
"""The largest number of Python threads; they start on demand."""
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share(loop: int, argument: int, threads: int) -> None:
    """Call the C function at the address `loop` with the pointer `argument` in up to `threads` threads, including this one;
    returns when all calls have returned.

    The function takes tasks from a shared counter until none is left, so a single call completes the work.
    """
    parallel = None if _forked else _torch_parallel()
    if threads > 1 and parallel is not None:
        parallel(loop, argument, threads, 0)
    else:
        share_python(partial(_ENTRY(loop), argument), threads)


@cache
def _torch_parallel() -> Callable[[int, int, int, int], Any] | None:
    """``GOMP_parallel`` of the OpenMP library that torch is linked to, or None without one."""
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    found.restype = None
    return found


def share_python(work: Callable[[], None], threads: int) -> None:
    """Run `work` here and in up to ``threads - 1`` Python threads at once; returns when all calls have returned."""
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
    """Forget all threads after a fork: the child has none of them."""
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
