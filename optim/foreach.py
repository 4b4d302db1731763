"""The foreach path: points of many parameters in one `step.update`, as a `Ragged` stack. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..manifolds.base import unguarded
from .matrices import New, Reading
from .memory import Memory
from .motion import is_linear
from .options import Options
from .plan import Batch, Stacked, Stacks
from .ragged import Ragged
from .stages import ambient, is_penalised
from .step import update

__all__ = ["Foreach"]

PIECE = 2**18
"""Elements that are stacked at a time: temporaries of more leave the cache, and SGDG takes twice as long."""
LINEAR_PIECE = 2**20
"""The same for moves without temporaries: a quarter faster than 2^18 on ResNet-56's weights."""


class Foreach(Stacked):
    """Points of one manifold, dtype and device in few calls of many kernels."""

    def lying(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        """As in `Plan`."""
        assert self.matrices is not None
        grads = found.grads
        if self.manifold.event_ndim == 1:
            grads = [layout.lying(g) for layout, g in zip(self.matrices.layouts, grads, strict=True)]
        self.step(self.stacks(found), grads, self.matrices.params, new, options)

    def step(
        self,
        stacks: Stacks,
        grads: list[Tensor],
        params: Sequence[Tensor],
        new: Sequence[New] | None,
        options: Options,
    ) -> None:
        """As in `Stacked`."""
        if is_penalised(self.manifold, options):
            grads = [ambient(self.manifold, x, grad, options) for x, grad in zip(stacks.x, grads, strict=True)]
            options = {**options, "maximize": False, "orthogonality": 0.0}
        if isinstance(options["lr"], Tensor):
            options = {**options, "lr": float(options["lr"])}
        sizes = [grad.numel() for grad in grads]
        size = LINEAR_PIECE if is_linear(self.manifold, options) else PIECE
        for batch, members in self.batches(params, new):
            for piece in _pieces(members, sizes, size):
                self._move(batch, stacks.of(piece), [grads[i] for i in piece], params[0].dtype, options)

    def _move(self, batch: Batch, stacks: Stacks, grads: list[Tensor], dtype: torch.dtype, options: Options) -> None:
        rule, pointwise = self.rule, self.manifold.event_ndim == 0
        points = [1 if pointwise else part.size(0) for part in stacks.x]
        x: Any = Ragged(stacks.x, points)
        memory = Memory(dtype, batch.new.vectors, step=None if batch.step is None else torch.tensor(batch.step))
        vectors: Any = Ragged(stacks.vectors, points)
        squares: Any = Ragged(stacks.squares, points) if pointwise else None
        if stacks.vectors:
            memory.vectors[rule.vectors[0]] = vectors
        if stacks.squares:
            memory.scalars[rule.scalars[0]] = squares if pointwise else torch.cat(stacks.squares)
        if stacks.radii and not batch.new.radius:
            memory.scalars["radius"] = torch.cat(stacks.radii)
        egrad: Any = Ragged(grads, points)
        y: Any = update(unguarded(self.manifold), rule, x, egrad, memory, options)
        if y is not x:
            torch._foreach_copy_(stacks.x, y.parts)
        moved: Any = memory.vectors.get(rule.vectors[0], vectors)
        if moved is not vectors:
            torch._foreach_copy_(stacks.vectors, moved.parts)
        if stacks.squares and not pointwise:
            torch._foreach_copy_(stacks.squares, memory.scalars[rule.scalars[0]].split(points))
        if stacks.radii and batch.new.radius:
            torch._foreach_copy_(stacks.radii, memory.scalars["radius"].split(points))


def _pieces(members: Sequence[int], sizes: Sequence[int], size: int) -> Iterator[list[int]]:
    """`members` in runs of at most `size` elements, or of one."""
    piece: list[int] = []
    filled = 0
    for i in members:
        if piece and filled + sizes[i] > size:
            yield piece
            piece, filled = [], 0
        piece.append(i)
        filled += sizes[i]
    yield piece
