"""`Law`: a statement about a class of manifolds. `Setting`: the points and tangents of a test, and its comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import GeometryError, LawError
from ..manifolds import Manifold, QuotientManifold

__all__ = ["LAWS", "Law", "Setting", "law"]


@dataclass(frozen=True)
class Law:
    """One law, to be checked on a manifold that inherits the class `of`; made by `laws`.

    Handed to ``pytest.mark.parametrize``, it names its test.
    """

    name: str
    """The name in messages and in `Manifold.unmet_laws`."""
    statement: str
    """The law in a sentence."""
    of: type
    """The class whose hypothesis implies the law."""
    function: Callable[[Setting], None] = field(repr=False)
    """Raises `LawError` where the law does not hold."""

    @property
    def __name__(self) -> str:
        return self.name

    def check(
        self,
        manifold: Manifold,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        batch: Sequence[int] = (3,),
        seed: int = 0,
        device: torch.device | str = "cpu",
        thorough: bool = False,
    ) -> None:
        """Check the law at random points and tangents, (*batch, *event).

        >>> from retract.manifolds import Sphere
        >>> from retract.testing import laws
        >>> for law in laws(Sphere()):
        ...     if "distance" in law.name:
        ...         law.check(Sphere(), (5,))
        ...         print(law.statement)
        dist(x, y)²/2 has the gradient −log(y, x) in y, where x and y coincide too.
        dist(x, x) and log(x, x) are 0.

        Args:
            manifold: an instance of a class that inherits `of`.
            shape: shape of one point, (*event).
            dtype: dtype of points and tangents. Orders and derivatives are measured in float64 only.
            batch: batch shape of the points; laws about batches do not apply to ``()``, a single point.
            seed: seed of all random numbers.
            device: device of all arrays.
            thorough: whether to test derivatives in all combinations of modes and at all special points, which is much slower.

        Raises:
            LawError: if the law does not hold. The message says by how much and at which input.
            GeometryError: if a point cannot have the shape `shape`.
        """
        setting = Setting(self, manifold, tuple(shape), tuple(batch), dtype, torch.device(device), seed, thorough)
        try:
            setting.draw()
            self.function(setting)
        except LawError:
            raise
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise setting.failure(f"{type(error).__name__} was raised: {reason}") from error


LAWS: list[Law] = []
"""The laws of all classes, in the order of their checks."""


def law(of: type) -> Callable[[Callable[[Setting], None]], Law]:
    """A decorator that makes a function of a `Setting` a law of the class `of`; its docstring is the statement."""

    def register(function: Callable[[Setting], None]) -> Law:
        LAWS.append(Law(function.__name__, " ".join((function.__doc__ or "").split()), of, function))
        return LAWS[-1]

    return register


class Setting:
    """A manifold with random points, tangents and a test function, and the comparisons of laws."""

    m: Any
    """The manifold, an instance of the class of the law."""
    x: Tensor
    """Random points, (*batch, *event)."""
    u: Tensor
    """Tangents of length 0.7, inside most injectivity radii."""
    v: Tensor
    """Tangents of length 1.3."""
    w: Tensor
    """Tangents of length 0.4."""
    inputs: dict[str, Tensor]
    """The arrays in a message: x, u, v and w, unless the law sets others."""

    def __init__(
        self,
        law: Law,
        manifold: Manifold,
        shape: tuple[int, ...],
        batch: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        thorough: bool,
    ) -> None:
        error = manifold.event_error(shape)
        if error:
            raise GeometryError(f"shape={shape}, of one point without batch dimensions: {error}")
        self.law, self.m, self.dtype, self.device = law, manifold, dtype, device
        self.event, self.batch, self.seed, self.thorough = shape, batch, seed, thorough
        self.generator = torch.Generator(device).manual_seed(seed)
        self.inputs = {}

    def draw(self) -> None:
        """Points, tangents and the weights of the test function."""
        self.x = self.inputs["x"] = self.point()
        self.u, self.v, self.w = (self.tangent(length) for length in (0.7, 1.3, 0.4))
        self.inputs |= {"u": self.u, "v": self.v, "w": self.w}
        self.weights = self.noise(*self.x.shape)

    @property
    def tol(self) -> float:
        """Rounding of a handful of operations on numbers of order one."""
        return 2000 * torch.finfo(self.dtype).eps

    def point(self) -> Tensor:
        """Random points, (*batch, *event)."""
        shape = (*self.batch, *self.event)
        return self.m.random_point(*shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def noise(self, *shape: int) -> Tensor:
        """A standard normal array."""
        return torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def tangent(self, length: float) -> Tensor:
        """Random tangents at x of this length."""
        u = self.m.random_tangent(self.x, generator=self.generator)
        return u * (length / self.m.norm(self.x, u))

    def along(self, length: float) -> Tensor:
        """u scaled to this length; messages show it."""
        self.inputs["u"] = self.u * (length / self.m.norm(self.x, self.u))
        return self.inputs["u"]

    def lengths(self) -> tuple[float, ...]:
        """Lengths of steps, from 0 to `Manifold.max_tangent_norm`."""
        longest = self.m.max_tangent_norm
        return (0.0, 1e-30, 1e-12, 1e-3, min(1.0, longest), longest)

    def f(self, x: Tensor) -> Tensor:
        """A function, smooth near the points x and constant on classes, whose gradient and Hessian are of order one."""
        z = self.weights * (self.m.align(self.x, x) if isinstance(self.m, QuotientManifold) else x)
        return z.sin().sum() + 0.5 * z.sum().square() / z.numel()

    def egrad(self) -> Tensor:
        """The Euclidean gradient of `f` at x."""
        x = self.x.clone().requires_grad_()
        return torch.autograd.grad(self.f(x), x)[0]

    def failure(self, what: str, off: Tensor | None = None) -> LawError:
        """The error with the law, the failed comparison `what`, and the input: in the row where `off`, (*batch, …), is largest,
        or in all rows without `off`."""
        row: tuple[int, ...] = ()
        if off is not None and off.shape[: len(self.batch)] == self.batch:
            row = _worst(off)[: len(self.batch)]
        where = f"{self.m!r}, points of shape {(*self.batch, *self.event)} in {self.dtype}"
        drawn = f"at row {row}, " if row else ""
        lines = [
            f"{self.law.name} does not hold for {where}: {what}",
            f"  law of {self.law.of.__name__}: {self.law.statement}",
            f"  {drawn}with seed={self.seed} on {self.device}:",
            *(f"  {name} = {_brief(a[row])}" for name, a in self.inputs.items()),
        ]
        return LawError("\n".join(lines))

    def holds(self, condition: object, what: str, off: Tensor | None = None) -> None:
        """Raise `LawError` unless `condition`."""
        if not condition:
            raise self.failure(what, off)

    def within(self, gap: Tensor | float, limit: float, what: str) -> None:
        """Raise `LawError` unless `gap`, a number or one per point, is at most `limit`; NaN is not."""
        off = torch.as_tensor(gap).detach().nan_to_num(nan=torch.inf)
        worst = float(off.max())
        self.holds(worst <= limit, f"{what} is off by {worst:.3g} (tolerance {limit:.3g})", off)

    def between(self, value: Tensor | float, low: float, high: float, what: str) -> None:
        """Raise `LawError` unless low < value < high."""
        value = float(value)
        self.holds(low < value < high, f"{what} is {value:.4g}, not between {low:.4g} and {high:.4g}")

    def same(self, a: Tensor, b: Tensor, what: str, tol: float | None = None, size: float = 1.0) -> None:
        """Raise `LawError` unless a = b within `tol`, relative to the largest entry of b or to `size`, if that is larger."""
        size, gap = max(size, float(b.abs().max())), (a - b).abs().nan_to_num(nan=torch.inf)
        worst = _worst(gap)
        entries = f"{float(a.expand_as(gap)[worst]):.6g} for {float(b.expand_as(gap)[worst]):.6g}"
        self.within(gap, (tol or self.tol) * size, f"{what}, at {worst} {entries},")

    def bitwise(self, a: Tensor, b: Tensor, what: str) -> None:
        """Raise `LawError` unless a and b are equal in every bit."""
        if not torch.equal(a, b):
            gap = (a - b).abs().nan_to_num(nan=torch.inf)
            raise self.failure(f"{what} is not equal bitwise; off by {float(gap.max()):.3g} (tolerance 0)", gap)

    def finite(self, a: Tensor, what: str) -> None:
        """Raise `LawError` if `a` has infinite or NaN entries."""
        wrong = ~torch.isfinite(a.detach())
        self.holds(not wrong.any(), f"{what} has {int(wrong.sum())} entries not finite", wrong.to(self.dtype))

    def on(self, y: Tensor, what: str, tol: float | None = None) -> None:
        """Raise `LawError` unless `y` are points of the manifold."""
        self.within(self.m.point_defect(y), tol or self.tol, f"point_defect of {what}")

    def tangent_at(self, y: Tensor, v: Tensor, what: str, tol: float | None = None) -> None:
        """Raise `LawError` unless `v` are tangents at `y`."""
        self.within(self.m.tangent_defect(y, v), tol or self.tol, f"tangent_defect of {what}")

    def refuses(self, what: str, words: Sequence[str], function: Callable[..., object], *arguments: Tensor) -> None:
        """Raise `LawError` unless the call raises `GeometryError` with all of `words` in its message."""
        try:
            function(*arguments)
        except GeometryError as error:
            missing = [word for word in words if word not in str(error)]
            self.holds(not missing, f"{what} is refused without the words {missing}: {error}")
        else:
            raise self.failure(f"{what} is not refused")


def _worst(off: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))


def _brief(a: Tensor) -> str:
    """The first twelve numbers of an array, and its shape if it is not a vector."""
    numbers = [f"{number:.6g}" for number in a.detach().flatten()[:13].tolist()]
    shown = ", ".join(numbers if len(numbers) < 13 else [*numbers[:12], "…"])
    return f"[{shown}]" + (f" in shape {tuple(a.shape)}" if a.ndim > 1 else "")
