"""Line searches, as values: how far to go along a direction of descent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import OptionError
from .objective import Trial

__all__ = ["Armijo", "HagerZhang", "Search", "StrongWolfe"]

Curve = Callable[[float], Trial]
"""t ↦ the trial at t on a curve of descent."""


@dataclass(frozen=True)
class Search(ABC):
    """A line search, as a value: a frozen dataclass. A search of your own is a subclass with `__call__`.

    Example:
        >>> import torch
        >>> from retract.manifolds import Sphere
        >>> from retract.optim import Armijo, SteepestDescent, minimize
        >>> a = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
        >>> x0 = torch.ones(5, dtype=torch.float64) / 5**0.5
        >>> round(minimize(lambda x: x @ a @ x, x0, Sphere(), method=SteepestDescent(search=Armijo())).fun, 9)
        1.0

    Args:
        decrease: δ: f has to fall by this share of what the slope at the start promises, in (0, 1/2).
        max_trials: trials before the search gives up.
    """

    decrease: float = 1e-4
    """The share δ of the promised decrease."""
    max_trials: int = 40
    """Trials before the search gives up."""

    def __post_init__(self) -> None:
        if not 0.0 < self.decrease < 0.5:
            raise OptionError(f"{type(self).__name__}: decrease={self.decrease!r} is outside (0, 1/2)")
        if not isinstance(self.max_trials, int) or self.max_trials < 1:
            raise OptionError(f"{type(self).__name__}: max_trials={self.max_trials!r} is not an integer ≥ 1")

    @abstractmethod
    def __call__(self, curve: Curve, start: Trial, t: float, rounding: float) -> Trial | None:
        """A trial that passes, or None if none was found.

        Args:
            curve: evaluates f and its slope at t, in a unit of the run; `Trial.state` is None where they are not finite.
            start: the trial at t = 0, with a negative slope.
            t: the first guess, > 0.
            rounding: the size of rounding errors of f, 0 to take its values as exact.
        """

    def falls(self, start: Trial, trial: Trial, rounding: float) -> bool:
        """Whether f falls enough at `trial`: f(t) ≤ f(0) + δ t f'(0), or, where that is lost in rounding errors, f'(t) ≤ (2δ − 1) f'(0)
        (Hager & Zhang 2005, eqs. 4.1, 4.2): the same for quadratic f, from slopes alone."""
        if trial.state is None:
            return False
        if trial.f <= start.f + self.decrease * trial.t * start.slope:
            return True
        near = rounding > 0 and trial.f <= start.f + rounding
        return near and trial.slope <= (2.0 * self.decrease - 1.0) * start.slope


@dataclass(frozen=True)
class Armijo(Search):
    """Backtracking: t, t β, t β², … until f falls enough (Absil, Mahony & Sepulchre 2008, Definition 4.2.2).

    Example:
        >>> from retract.optim import Armijo
        >>> Armijo(contraction=0.3)
        Armijo(decrease=0.0001, max_trials=40, contraction=0.3)

    Args:
        decrease, max_trials: as in `Search`.
        contraction: β in (0, 1).
    """

    contraction: float = 0.5
    """The factor β between trials."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.contraction < 1.0:
            raise OptionError(f"Armijo: contraction={self.contraction!r} is outside (0, 1)")

    def __call__(self, curve: Curve, start: Trial, t: float, rounding: float) -> Trial | None:
        for _ in range(self.max_trials):
            trial = curve(t)
            if self.falls(start, trial, rounding):
                return trial
            t *= self.contraction
        return None


@dataclass(frozen=True)
class _Wolfe(Search):
    curvature: float = 0.9
    """The share σ of the first slope below which the last one has to be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decrease < self.curvature < 1.0:
            raise OptionError(f"{type(self).__name__}: curvature={self.curvature!r} is outside (decrease, 1)")

    def levels(self, start: Trial, trial: Trial) -> bool:
        """Whether |f'(t)| ≤ σ |f'(0)|."""
        return abs(trial.slope) <= -self.curvature * start.slope


@dataclass(frozen=True)
class HagerZhang(_Wolfe):
    """Wolfe's conditions, of which slopes alone decide where values are lost in rounding errors (Hager & Zhang 2005, §4).

    So it goes on where f changes in its last digits only, and gradients fall to 1e-10 of the first one; comparing values ends at
    1e-8. The trial expands until f rises or falls too little, and is then the minimizer of a cubic through values and slopes, or of a
    secant through slopes, kept inside of the bracket.

    Example:
        >>> from retract.optim import HagerZhang
        >>> HagerZhang(curvature=0.1)  # near the minimizer along each direction
        HagerZhang(decrease=0.0001, max_trials=40, curvature=0.1, expansion=4.0)

    Args:
        decrease, max_trials: as in `Search`.
        curvature: σ: the slope has to fall to this share of the first one, in (decrease, 1).
        expansion: the factor between trials while f falls.
    """

    expansion: float = 4.0
    """The factor between trials while f falls."""

    def __call__(self, curve: Curve, start: Trial, t: float, rounding: float) -> Trial | None:
        low, high = start, None
        for _ in range(self.max_trials):
            trial = curve(t)
            falls = self.falls(start, trial, rounding)
            if falls and self.levels(start, trial):
                return trial
            if falls and trial.slope < 0:
                low = trial
            else:
                high = trial
            t = self.expansion * t if high is None else _between(low, high, rounding)
        return low if low.f < start.f - rounding else None


@dataclass(frozen=True)
class StrongWolfe(_Wolfe):
    """The strong Wolfe conditions by bracketing and zooming with cubic interpolation (Nocedal & Wright 2006, Algorithms 3.5, 3.6), with
    the safeguards of torch.optim.LBFGS.

    Example:
        >>> from retract.optim import StrongWolfe
        >>> StrongWolfe()
        StrongWolfe(decrease=0.0001, max_trials=25, curvature=0.9, shortest=0.0)

    Args:
        decrease, max_trials: as in `Search`.
        curvature: c₂: |f'(t)| has to fall to this share of |f'(0)|, in (decrease, 1).
        shortest: brackets as short as this end the search.
    """

    max_trials: int = 25
    """Trials after the first one, before the search gives up."""
    shortest: float = 0.0
    """The length of brackets that are not cut any more."""

    def __call__(self, curve: Curve, start: Trial, t: float, rounding: float) -> Trial | None:
        before, trial, trials = start, curve(t), 0
        bracket = None
        while trials < self.max_trials:
            if not self.falls(start, trial, rounding) or (trials > 1 and trial.f >= before.f + rounding):
                bracket = [before, trial]
                break
            if self.levels(start, trial):
                return trial
            if trial.slope >= 0:
                bracket = [before, trial]
                break
            t = _cubic(before, trial, trial.t + 0.01 * (trial.t - before.t), 10.0 * trial.t)
            before, trial, trials = trial, curve(t), trials + 1
        if bracket is None:
            bracket = [start, trial]
        best = self._zoom(curve, start, bracket, self.max_trials - trials, rounding)
        passes = self.falls(start, best, rounding) and self.levels(start, best)
        return best if passes or (best.state is not None and best.f < start.f - rounding) else None

    def _zoom(self, curve: Curve, start: Trial, bracket: list[Trial], trials: int, rounding: float) -> Trial:
        low = int(bracket[0].f > bracket[1].f)
        stuck = False
        while trials > 0:
            near, far = min(one.t for one in bracket), max(one.t for one in bracket)
            if far - near <= self.shortest:
                break
            t = _cubic(bracket[0], bracket[1], near, far)
            margin = 0.1 * (far - near)
            if min(far - t, t - near) >= margin:
                stuck = False
            elif stuck or t >= far or t <= near:  # twice at the same end
                t, stuck = (far - margin if abs(t - far) < abs(t - near) else near + margin), False
            else:
                stuck = True
            trial, trials = curve(t), trials - 1
            if not self.falls(start, trial, rounding) or trial.f >= bracket[low].f + rounding:
                bracket[1 - low] = trial
                low = int(bracket[0].f > bracket[1].f)
                continue
            if self.levels(start, trial):
                return trial
            if trial.slope * (bracket[1 - low].t - bracket[low].t) >= 0:
                bracket[1 - low] = bracket[low]
            bracket[low] = trial
        return bracket[low]


def _cubic(a: Trial, b: Trial, low: float, high: float) -> float:
    """The minimizer of the cubic through the values and slopes of two trials, between `low` and `high`; their middle if it has none
    (Nocedal & Wright 2006, eq. 3.59)."""
    if a.t > b.t:
        a, b = b, a
    width = b.t - a.t
    if width == 0.0:
        return 0.5 * (low + high)
    first = a.slope + b.slope - 3.0 * (a.f - b.f) / (a.t - b.t)
    size = max(abs(first), abs(a.slope), abs(b.slope))
    if not 0.0 < size < math.inf:
        return 0.5 * (low + high)
    size = math.ldexp(1.0, math.frexp(size)[1] - 1)  # a power of 2, in units of which squares are numbers
    first, left, right = first / size, a.slope / size, b.slope / size
    square = first**2 - left * right
    if not square >= 0.0:
        return 0.5 * (low + high)
    second = math.sqrt(square)
    divisor = right - left + 2.0 * second
    if divisor == 0.0:
        return 0.5 * (low + high)
    return min(max(b.t - width * ((right + second - first) / divisor), low), high)


def _between(low: Trial, high: Trial, rounding: float) -> float:
    """A trial well inside of the bracket: by slopes alone where the values differ by rounding errors, else by a cubic, else the middle."""
    width = high.t - low.t
    t = math.nan
    if high.state is not None:
        if abs(high.f - low.f) <= 10.0 * rounding and high.slope > low.slope:
            t = low.t - width * low.slope / (high.slope - low.slope)
        else:
            t = _cubic(low, high, min(low.t, high.t), max(low.t, high.t))
    return t if 0.05 <= (t - low.t) / width <= 0.95 else low.t + 0.5 * width
