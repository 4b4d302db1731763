"""What all methods share: the rules by which a run ends, its history and its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

from .objective import Objective, State
from .space import Arrays

__all__ = ["OptimizeResult", "Record", "Run", "Stopped"]


_IDLE = 50
"""Iterations without a lower value or a shorter gradient that end a run: it wanders in rounding errors."""


class Record(NamedTuple):
    """A line of the history: what is known after an iteration, in ``history[0]`` at the start.

    Example:
        >>> import torch
        >>> from retract.manifolds import Euclidean
        >>> from retract.optim import minimize
        >>> found = minimize(lambda x: x.square().sum(), torch.ones(2), Euclidean())
        >>> found.history[0].fun
        2.0
    """

    fun: float
    """The value of f."""
    grad_norm: float
    """The length of the Riemannian gradient."""
    step: float
    """The length of the last step."""
    nfev: int
    """Evaluations of f so far."""
    njev: int
    """Evaluations of the gradient so far."""
    nhev: int
    """Products with the Hessian so far."""
    time: float
    """Seconds since the start."""


@dataclass
class OptimizeResult:
    """The result of `minimize`, in scipy's words.

    Example:
        >>> import torch
        >>> from retract.manifolds import Sphere
        >>> from retract.optim import minimize
        >>> x0 = torch.tensor([0.6, 0.8], dtype=torch.float64)
        >>> found = minimize(lambda x: x[0], x0, Sphere())
        >>> found.success, round(found.fun, 9)
        (True, -1.0)
    """

    x: Any
    """The point that was reached, shaped like x0."""
    fun: float
    """f(x)."""
    grad_norm: float
    """The length of the Riemannian gradient at x."""
    nit: int
    """Iterations."""
    nfev: int
    """Evaluations of f, those for gradients among them."""
    njev: int
    """Evaluations of the gradient."""
    nhev: int
    """Products with the Hessian."""
    success: bool
    """Whether a tolerance was reached, f cannot be lowered any more in its dtype, or the callback ended the run."""
    message: str
    """Why the run ended."""
    history: list[Record] = field(repr=False)
    """A record per iteration, the start first."""
    exception: BaseException | None = None
    """What f or the callback raised after the start."""


class Stopped(Exception):  # noqa: N818 - no error
    """Raised inside of a run to end it."""

    def __init__(self, message: str, success: bool = False) -> None:
        super().__init__(message)
        self.success = success


@dataclass
class Run:
    """One run of a method from a state that is known."""

    objective: Objective
    state: State
    gtol: float
    gtol_rel: float
    xtol: float
    ftol: float
    max_iter: int
    max_time: float
    display: bool
    callback: Callable[[Arrays, Record], Any] | None = None
    history: list[Record] = field(default_factory=list)
    began: float = field(default_factory=perf_counter)
    best: tuple[float, float] = (math.inf, math.inf)
    """The lowest value and the shortest gradient so far."""
    idle: int = 0
    """Iterations since either was lowered."""
    terms: float = 0.0
    """The size of the terms that f is the sum of, if it was found to be larger than f."""

    def __post_init__(self) -> None:
        self.first = math.sqrt(self.state.square)
        """The length of the gradient at the start."""

    def rounding(self, f: float) -> float:
        """The size of rounding errors of f."""
        return 10.0 * self.objective.eps * max(abs(f), self.terms)

    def coarser(self) -> bool:
        """Take f for a sum of terms as large as its largest value so far, which cancel where f is small; whether that is new."""
        before, self.terms = self.terms, max(abs(record.fun) for record in self.history) / self.objective.unit
        return self.terms > max(before, abs(self.state.f))

    @property
    def tolerance(self) -> float:
        """The length of a gradient that ends the run."""
        return max(self.gtol / self.objective.unit, self.gtol_rel * self.first)

    def accept(self, state: State, step: float) -> None:
        """Go to `state`, `step` away; raises `Stopped` where the run ends."""
        before, self.state = self.state, state
        counts, unit = self.objective.counts, self.objective.unit
        norm = math.sqrt(state.square)
        record = Record(
            unit * state.f, unit * norm, step, counts.nfev, counts.njev, counts.nhev, perf_counter() - self.began
        )
        self.history.append(record)
        number = len(self.history) - 1
        if self.display:
            print(
                f"{number:6d}  f = {record.fun: .12e}  |g| = {record.grad_norm:.2e}  step {step:.2e}  evaluations {counts.nfev}"
            )
        if self.callback is not None:
            try:
                self.callback([a.clone() for a in state.x], record)
            except StopIteration as end:
                raise Stopped(str(end) or "the callback ended the run", success=True) from None
        if norm <= self.tolerance:
            raise Stopped("the gradient is as short as asked for", success=True)
        if number and step <= self.xtol:
            raise Stopped("the step is as short as asked for", success=True)
        if (
            number
            and self.ftol > 0
            and 0.0 <= before.f - state.f <= self.ftol * max(abs(before.f), abs(state.f), 1.0 / unit)
        ):
            raise Stopped("f has changed as little as asked for", success=True)
        low, short = self.best
        self.idle = 0 if state.f < low - self.objective.eps * abs(low) or norm < short else self.idle + 1
        self.best = min(low, state.f), min(short, norm)
        if self.idle >= _IDLE:
            if not self.coarser():
                raise self.exhausted(0.0)
            self.idle = 0
        if number >= self.max_iter:
            raise Stopped(f"max_iter={self.max_iter} iterations were made")
        if perf_counter() - self.began >= self.max_time:
            raise Stopped(f"max_time={self.max_time} seconds have passed")

    def check_bounded(self, f: float) -> None:
        """Raise `Stopped` where f is −∞."""
        if f == -math.inf:
            raise Stopped("f falls to −∞: it is not bounded below")

    def exhausted(self, promised: float) -> Stopped:
        """The end of a run that finds no lower point, where a step of the method promised to lower f by `promised`."""
        if promised <= 10.0 * self.rounding(self.state.f):
            return Stopped(
                "f cannot be lowered any further: what a step promises is lost in its rounding errors", success=True
            )
        return Stopped(
            f"no descent: f does not fall along the negative gradient, although a step promised {self.objective.unit * promised:.1e}. Is f smooth, and "
            "does its gradient belong to it?"
        )
