"""Sums over the coordinates of points, which are all that a layout changes in a step of rows.

The coordinates of a point are in one matrix, or, for the parts of a joint point, in several, or on several processes. Dot
products are summed over the coordinates in each, and added. A step is a generator: it yields the sums of this process, and is
sent those of all. `run` takes steps together, so that processes exchange the sums of all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...manifolds import numerics

__all__ = ["Message", "Step", "Sums", "run"]

Message = tuple[Any, Tensor]
"""Numbers, (numbers,), for all processes of a group, the same count from each."""
_T = TypeVar("_T")
Step = Generator[Message, Tensor, _T]
"""Yields messages, and is sent the numbers of all processes of the group, (processes, numbers)."""


def run(steps: Iterable[Step[None]], exchange: Callable[[Sequence[Message]], list[Tensor]] | None = None) -> None:
    """Run `steps`: one after the other as long as they send nothing, and then together, with one `exchange` for all messages."""
    waiting = [(step, message) for step in steps if (message := _resume(step)) is not None]
    while waiting and exchange is not None:
        answers = exchange([message for _, message in waiting])
        pairs = zip(waiting, answers, strict=True)
        waiting = [(step, message) for (step, _), answer in pairs if (message := _resume(step, answer)) is not None]


def _resume(step: Step[None], answer: Any = None) -> Message | None:
    """The next message of `step`, None at its end."""
    try:
        return step.send(answer)
    except StopIteration:
        return None


class Sums:
    """Sums for points like `x`: one matrix per set of points, or `parts` of them, first the first parts of all sets.

    Local sums are over the coordinates in this process, totals over those in all `processes`, a process group; without one they
    are the same. All are (points of all sets,), float64.
    """

    def __init__(self, x: Sequence[Tensor], parts: int = 1, processes: Any = None) -> None:
        self.points = [matrix.shape[0] for matrix in x[: len(x) // parts]]
        """The number of points of each set."""
        self._parts, self._processes, self._dtype = parts, processes, x[0].dtype

    def spread(self, numbers: Tensor) -> list[Tensor]:
        """`numbers` per point as (points, 1), for each matrix."""
        return [*numbers.to(self._dtype).unsqueeze(1).split(self.points)] * self._parts

    def dots(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """a·b, local."""
        return self._joined(torch.cat([torch.linalg.vecdot(p, q) for p, q in zip(a, b, strict=True)]).double())

    def squares(self, a: Sequence[Tensor]) -> Tensor:
        """a·a, local.

        Squares in float32 that overflow or underflow are summed again in float64; off the CPU, where testing for that would
        wait for the device, all are. `vector_norm` takes ten times as long for rows that are not contiguous.
        """
        narrow, size = self._dtype == torch.float32, None
        if a[0].is_cpu or not narrow:
            norm, dot, strided = torch.linalg.vector_norm, torch.linalg.vecdot, not all(map(Tensor.is_contiguous, a))
            size = torch.cat([dot(p, p).sqrt() if strided and p.stride(1) != 1 else norm(p, dim=1) for p in a])
        if size is None or (narrow and not numerics.squares_fit(size)):
            size = torch.cat([torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in a])
        return self._joined(size.double().square())

    def widths(self, x: Sequence[Tensor]) -> Tensor:
        """n, local."""
        widths = torch.tensor([matrix.shape[1] for matrix in x], dtype=torch.float64)
        widths = widths.repeat_interleave(torch.tensor(self.points * self._parts))
        return self._joined(widths.to(x[0].device, non_blocking=True))

    def total(self, *sums: Tensor) -> Step[Sequence[Tensor]]:
        """The totals of local sums."""
        if self._processes is None:
            return sums
        return (yield from self._all(*sums)).sum(0).unbind()

    def normal(self, x: list[Tensor], g: list[Tensor], measures: bool) -> Step[tuple[Tensor, Tensor, list[Tensor]]]:
        """x·x of unit vectors and, if it `measures`, h·h, totals, and h = g − (x·g) x, without which combinations of x and an
        almost normal g would cancel to rounding errors.

        Process i has the coordinates x_i and g_i. With a_i = x_i·g_i / ‖x_i‖², h_i = g_i − a_i x_i is orthogonal to x_i. So
        a = x·g = Σ a_i ‖x_i‖², and h there is h_i + (a_i − a) x_i, with ‖h‖² = Σ ‖h_i‖² + (a_i − a)² ‖x_i‖²: nothing in it
        cancels, unlike ‖g‖² − a².
        """
        xx, a = self.squares(x), self.dots(x, g)
        if self._processes is not None:
            a = torch.where(xx > 1e-40, a / xx, 0.0)  # shorter parts add nothing to a, and a / xx might overflow
        h = list(torch._foreach_addcmul(g, x, self.spread(-a)))
        hh = self.squares(h) if measures else torch.zeros_like(xx)
        if self._processes is None:
            return xx, hh, h
        squares, parts, rests = (yield from self._all(xx, a, hh)).unbind(1)
        along = (parts * squares).sum(0)
        torch._foreach_addcmul_(h, x, self.spread(a - along))
        return squares.sum(0), (rests + (parts - along).square() * squares).sum(0), h

    def _all(self, *sums: Tensor) -> Step[Tensor]:
        """Local sums of all processes, (processes, sums, points)."""
        answer = yield self._processes, torch.cat(sums)
        return answer.unflatten(1, (len(sums), -1))

    def _joined(self, sums: Tensor) -> Tensor:
        """From one per matrix and point to one per point."""
        return sums if self._parts == 1 else sums.view(self._parts, -1).sum(0)
