"""What a solver evaluates, when, and with which derivatives: f behind a counter that is the same for all libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["WEIGHTS", "Call", "Trace", "total"]

WEIGHTS = {"values": 0.5, "gradients": 1.0, "products": 2.0}
"""What an evaluation counts in a total, in gradients."""


def total(counts: dict[str, int]) -> float:
    """The evaluations in units of gradients."""
    return sum(WEIGHTS[kind] * number for kind, number in counts.items())


@dataclass
class Call:
    """One evaluation of f."""

    seconds: float = 0.0
    """When it ended, since the start of the run."""
    value: Tensor | None = None
    passes: int = 0
    """Backward passes through f: the first is the gradient, each further one a product with the Hessian."""
    for_product: bool = False
    """Whether it was made for a product only, which then includes the value and the gradient."""

    def backward(self, _: Tensor) -> None:
        """Hook of the gradient with respect to x."""
        self.passes += 1


@dataclass
class Trace:
    """f with a record of its calls. Costs microseconds per call, and waits for nothing."""

    f: Callable[[Any], Tensor]
    calls: list[Call] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    in_product: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        call = Call(for_product=self.in_product)
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(call.backward)
        value = self.f(x)
        call.value = value.detach()
        call.seconds = time.perf_counter() - self.start
        self.calls.append(call)
        return value

    @contextmanager
    def product(self) -> Iterator[None]:
        """Where a library evaluates f for a product with the Hessian."""
        self.in_product = True
        try:
            yield
        finally:
            self.in_product = False

    def counts(self, last: Call | None = None) -> dict[str, int]:
        """Numbers of values without derivatives, gradients and products with the Hessian, up to the call `last` without its
        products, or of all calls."""
        number = dict.fromkeys(WEIGHTS, 0)
        for call in self.calls:
            number["products"] += max(call.passes - 1, 0) if call is not last else 0
            if not call.for_product:
                number["gradients" if call.passes else "values"] += 1
            if call is last:
                break
        return number

    def first(self, bound: float) -> Call | None:
        """The first call with a value of at most `bound`."""
        return next((call for call in self.calls if float(call.value) <= bound), None)
