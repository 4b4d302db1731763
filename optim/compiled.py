"""The compiled path: `step.update` of many matrices in one graph of `torch.compile`. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..manifolds import Manifold
from .matrices import New, Reading, Seat
from .memory import Memory
from .options import Options
from .plan import Stacked, Stacks
from .points import State
from .rules import Rule
from .step import update

__all__ = ["Compiled"]

BACKEND = "inductor"


class Compiled(Stacked):
    """Points of one manifold, dtype and device in one compiled function.

    The learning rate and the number of the step enter as tensors, so that a schedule compiles nothing again; other options
    are part of the graph.
    """

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule) -> None:
        super().__init__(seats, state, rule)
        self._run: Callable[..., None] = torch.compile(_run, backend=BACKEND)

    def lying(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        """As in `Plan`."""
        its = self.matrices
        assert its is not None
        arranged = [layout.split(grad) for layout, grad in zip(its.layouts, found.grads, strict=True)]
        self.step(self.stacks(found), arranged, its.params, new, options)

    def step(
        self, stacks: Stacks, grads: list[Tensor], params: Sequence[Tensor], new: Sequence[New] | None, options: Options
    ) -> None:
        """As in `Stacked`."""
        device, dtype = stacks.x[0].device, stacks.x[0].dtype
        lr = options["lr"]
        # What a number depends on that lies on the device must not be read back: the rules compute with it as for a capture.
        its = {key: value for key, value in options.items() if key not in _NOT_NUMBERS} | {"capturable": True}
        its["lr"] = lr.to(device, dtype).reshape(()) if isinstance(lr, Tensor) else _number(lr, device, dtype)
        for batch, members in self.batches(params, new):
            step = None if batch.step is None else _number(batch.step, device, torch.float32)
            arrays = stacks.of(members)
            # The compiler asks views of parameters for a gradient, which torch warns about.
            arrays = arrays._replace(x=[x.detach() for x in arrays.x])
            some = [grads[i] for i in members]
            # A first step is like no other, and not worth a graph of its own.
            run = self._run if batch.new == New() else _run
            run(self.manifold, self.rule, arrays, some, params[0].dtype, batch.new, step, its)


_NOT_NUMBERS = ("params", "names", "param_names", "name", "manifold", "rows", "joined", "initial_lr")


def _number(value: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor that is filled on the device, without a copy to wait for."""
    return torch.full((), value, dtype=dtype, device=device)


def _run(
    manifold: Manifold,
    rule: Rule,
    stacks: Stacks,
    grads: Sequence[Tensor],
    dtype: torch.dtype,
    new: New,
    step: Tensor | None,
    options: Options,
) -> None:
    for i, (x, grad) in enumerate(zip(stacks.x, grads, strict=True)):
        memory = Memory(dtype, new.vectors, step=step)
        if stacks.vectors:
            memory.vectors[rule.vectors[0]] = stacks.vectors[i]
        if stacks.squares:
            memory.scalars[rule.scalars[0]] = stacks.squares[i]
        if stacks.radii and not new.radius:
            memory.scalars["radius"] = stacks.radii[i]
        y = update(manifold, rule, x, grad, memory, options)
        if y is not x:
            x.copy_(y)
        if stacks.vectors and memory.vectors[rule.vectors[0]] is not stacks.vectors[i]:
            stacks.vectors[i].copy_(memory.vectors[rule.vectors[0]])
        if stacks.radii and new.radius:
            stacks.radii[i].copy_(memory.scalars["radius"])
