"""`Ragged`: many matrices as one batch of points, for the *foreach* path.

`step.update` and the manifolds are written for one array of points, (points, n). A `Ragged` stands for a stack of
such arrays whose n differ, and answers the operations that they use: elementwise ones through `torch._foreach_*`,
a list of kernels per call, and reductions to numbers per point into one ordinary tensor, (all points, 1), on which
everything that concerns numbers per point is one operation for all parameters. No formula is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..manifolds import numerics

__all__ = ["Ragged"]


class Ragged:
    """A stack of `parts`, each (points, n), or of any shape where every coordinate is a point.

    Another operand may be a `Ragged` of the same stack, a number, or numbers per point, (all points, 1).
    """

    def __init__(self, parts: Sequence[Tensor], points: Sequence[int]) -> None:
        self.parts = list(parts)
        self.points = points
        """How many each part has."""

    @property
    def dtype(self) -> torch.dtype:
        """Of all parts."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Of all parts."""
        return self.parts[0].device

    @property
    def shape(self) -> tuple[Any, ...]:
        """(all points, n) with n as numbers per point: bounds on rounding depend on it."""
        n = torch.tensor([part.size(1) for part in self.parts], device=self.device)
        each = torch.tensor(self.points, device=self.device)
        return sum(self.points), n.repeat_interleave(each, output_size=sum(self.points)).unsqueeze(-1)

    def new_ones(self, shape: tuple[int, ...]) -> Tensor:
        """Ordinary ones; numbers per point where `shape` says so."""
        return self.parts[0].new_ones(shape)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _FUNCTIONS:
            return NotImplemented
        return _FUNCTIONS[func](*args, **(kwargs or {}))

    def _other(self, other: Any) -> Any:
        """`other` as a list along `parts`, or the number that it is."""
        if isinstance(other, Ragged):
            return other.parts
        if isinstance(other, Tensor) and other.ndim:
            return other.split(self.points)
        return other

    def _like(self, parts: Sequence[Tensor]) -> Ragged:
        return Ragged(parts, self.points)

    def _all(self, one: Callable[..., Any], other: Any, **kwargs: Any) -> Ragged:
        return self._like(one(self.parts, self._other(other), **kwargs))

    def __neg__(self) -> Ragged:
        return self._like(torch._foreach_neg(self.parts))

    def __add__(self, other: Any) -> Ragged:
        return self._all(torch._foreach_add, other)

    def add(self, other: Any, alpha: float = 1.0) -> Ragged:
        """self + alpha × other."""
        return self._all(torch._foreach_add, other, alpha=alpha)

    def add_(self, other: Any, alpha: float = 1.0) -> Ragged:
        """The same in place."""
        torch._foreach_add_(self.parts, self._other(other), alpha=alpha)
        return self

    def __sub__(self, other: Any) -> Ragged:
        return self._all(torch._foreach_sub, other)

    def __mul__(self, other: Any) -> Ragged:
        return self._all(torch._foreach_mul, other)

    __rmul__ = __mul__

    def mul_(self, other: Any) -> Ragged:
        """The product in place."""
        torch._foreach_mul_(self.parts, self._other(other))
        return self

    def __truediv__(self, other: Any) -> Ragged:
        return self._all(torch._foreach_div, other)

    def __rtruediv__(self, other: Any) -> Ragged:
        return self._like(torch._foreach_mul(torch._foreach_reciprocal(self.parts), other))

    def sqrt(self) -> Ragged:
        """Elementwise."""
        return self._like(torch._foreach_sqrt(self.parts))

    def addcmul_(self, first: Ragged, second: Any, value: float = 1.0) -> Ragged:
        """self ← self + value × first × second."""
        torch._foreach_addcmul_(self.parts, first.parts, self._other(second), value)
        return self

    def sum(self, dim: Any, keepdim: bool = False) -> Tensor:
        """Sums over the coordinates, (all points, 1)."""
        return torch.cat([part.sum(dim, keepdim=keepdim) for part in self.parts])


def _addcmul(a: Ragged, first: Ragged, second: Any, *, value: float = 1.0, out: Ragged | None = None) -> Ragged:
    if out is None:
        return a._like(torch._foreach_addcmul(a.parts, first.parts, a._other(second), value))
    for part, one, two, its in zip(a.parts, first.parts, a._other(second), out.parts, strict=True):
        torch.addcmul(part, one, two, value=value, out=its)
    return out


def _norm(a: Ragged, dim: Any, keepdim: bool, dtype: torch.dtype | None = None) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(part, dim=dim, keepdim=keepdim, dtype=dtype) for part in a.parts])


def _scaled_norm(a: Ragged, ndim: int) -> Any:
    if ndim == 0:
        return a._like(torch._foreach_abs(a.parts))
    if a.dtype != torch.float32 or a.device.type == "cpu":
        size = numerics.root_of_squares(a, ndim)  # type: ignore[arg-type]
        if a.dtype != torch.float32 or numerics.squares_fit(size):
            return size
    return torch.cat([numerics.norm(part, ndim) for part in a.parts])


def _where(condition: Tensor, a: Ragged, b: Ragged) -> Ragged:
    return a._like([torch.where(*each) for each in zip(a._other(condition), a.parts, b.parts, strict=True)])


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.addcmul: _addcmul,
    torch.linalg.vector_norm: _norm,
    numerics.norm: _scaled_norm,
    torch.where: _where,
    # What a tensor on the left hands over: numbers per point times, or over, an array.
    Tensor.mul: lambda number, a: a * number,
    Tensor.__mul__: lambda number, a: a * number,
    Tensor.__rmul__: lambda number, a: a * number,
    Tensor.__rtruediv__: lambda number, a: a / number,
    Tensor.__rdiv__: lambda number, a: a / number,
}
