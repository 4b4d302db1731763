"""A few Python threads that share a loop: for kernels that release the interpreter lock.

Numba's own threading layers end the process in a child after a fork (OpenMP) or when two Python threads meet
(workqueue). Threads that wait in a queue do neither, and tasks taken one by one even out a busy machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["share"]

_queue: SimpleQueue[_Shift] = SimpleQueue()
_size = 0
_growing = threading.Lock()


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


def share(work: Callable[[], None], threads: int) -> None:
    """Run `work` here and, at the same time, in up to ``threads - 1`` others; returns when all of them have.

    `work` takes what is left to do from a counter of its own until nothing is left.
    """
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
    global _queue, _size, _growing
    _queue, _size, _growing = SimpleQueue(), 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
