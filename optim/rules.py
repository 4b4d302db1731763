"""Update rules: the coefficients per point from which the update forms the new vectors and the step.

A rule sees neither points nor gradients, only the length of each point's gradient, its stored scalars, and the options. It
returns `Coefficients`. So it runs on every manifold, path and backend, and does not depend on the representative (Theorem 1 of
Yi 2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels import algebra
from .options import Options

__all__ = ["Adam", "Coefficients", "CoordinateAdam", "Memory", "Momentum", "Rule"]


@dataclass
class Memory:
    """The state of one batch of points during a step.

    Updates change the tensors in place or replace them; the executor writes them back.
    """

    dtype: torch.dtype
    """The dtype of the parameter, which may be narrower than that of the points."""
    fresh: bool
    """Whether the vectors were created for this step."""
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Tangent vectors at the points, (points, n)."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Scalars per point, (points, 1)."""
    step: Tensor | None = None
    """The number of this step, from 1; None for rules that do not count steps."""
    arrays: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per coordinate that are no tangent vectors, (points, n)."""
    matrix: tuple[int, int] | None = None
    """The shape of the matrices that the points are, or are the rows of; None if there are none."""


class Coefficients(NamedTuple):
    """The coefficients of a step in the Riemannian gradient γ and a stored tangent vector v:

        v ← keep · v + take · γ,    step = along · v + ahead · γ    (with the new v).

    Each is a number, or a tensor of scalars per point, (points, 1). For a rule with several vectors `keep`, `take` and `along`
    are mappings from names, and the step is the sum over them.

    Example:
        >>> Coefficients(keep=0.9, take=1.0, along=-0.1)  # heavy ball at lr = 0.1
        Coefficients(keep=0.9, take=1.0, along=-0.1, ahead=0.0)
    """

    keep: Any = 1.0
    take: Any = 0.0
    along: Any = 0.0
    ahead: Any = 0.0

    def of(self, name: str) -> tuple[Any, Any, Any]:
        """`keep`, `take` and `along` of the vector `name`."""
        keep, take, along = (factor[name] if isinstance(factor, Mapping) else factor for factor in self[:3])
        return keep, take, along


class Rule(ABC):
    """An update rule as a value."""

    vectors: Sequence[str] = ()
    """Names of the stored tangent vectors."""
    arrays: Sequence[str] = ()
    """Names of stored arrays with one number per coordinate that are no tangent vectors, and are never transported."""
    scalars: Sequence[str] = ()
    """Names of the stored scalars per point."""
    options: frozenset[str] = frozenset()
    """Names of the options that identify the rule in a state_dict."""
    counts_steps = False
    """Whether the rule needs the number of the step."""
    reads_lengths = True
    """Whether the rule needs the lengths of the gradients, which cost a pass over them."""

    averages_steps = False
    """Whether the length of the step is that of `steadied`, which gives a factor per point."""

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of everything stored in the shape of the parameter."""
        return (*self.vectors, *self.arrays)

    def needs(self, options: Options) -> Sequence[str]:
        """Names of the `vectors` that a step with these options creates if they are missing."""
        return self.stored

    def steadied(self, length: Tensor, memory: Memory, options: Options) -> Tensor:
        """The factor of steps of `length` at learning rate 1, (points, 1); with `averages_steps` only."""
        raise NotImplementedError

    @abstractmethod
    def __call__(self, length: Tensor, memory: Memory, options: Options) -> Coefficients:
        """The coefficients of a step.

        Args:
            length: lengths of the Riemannian gradients in the metric, after clipping, (points, 1); for a rule with `arrays` the
                absolute values of their coordinates, (points, n), in units of the point's size.
            memory: ``memory.scalars[name]``, (points, 1), to be changed in place or replaced; ``memory.fresh``, whether the vectors
                are new and 0; ``memory.step``, the number of this step from 1 as a tensor, if `counts_steps`.
            options: the options of the group.
        """


@dataclass(frozen=True)
class Momentum(Rule):
    """Stochastic gradient descent with momentum, in one of three conventions (option `momentum_form`).

    ``"heavy_ball"`` (torch): b ← ρ b + (1 − τ) γ, step −η b. ``"velocity"`` (Yi 2022, eq. 11; Cho & Lee 2017):
    u ← ρ u − η (1 − τ) γ, step u. They agree as long as η is constant. As in torch, the first gradient enters
    a fresh buffer undamped. ``"ema"`` (torch.optim.Muon): b ← ρ b + (1 − ρ) γ from b = 0, step −η b, and with Nesterov
    −η (ρ b + (1 − ρ) γ). At ρ = 0 an existing buffer is kept and not used.
    """

    vectors = ("momentum_buffer",)
    options = frozenset({"momentum"})
    reads_lengths = False

    def needs(self, options: Options) -> Sequence[str]:
        """The buffer, unless momentum is 0."""
        return self.vectors if options["momentum"] != 0 else ()

    def __call__(self, length: Tensor | None, memory: Memory, options: Options) -> Coefficients:
        lr, rho = options["lr"], options["momentum"]
        if rho == 0:
            return Coefficients(ahead=-lr)
        if options["momentum_form"] == "ema":
            along, ahead = (rho, 1.0 - rho) if options["nesterov"] else (1.0, 0.0)
            return Coefficients(rho, 1.0 - rho, -lr * along, -lr * ahead)
        take = 1.0 if memory.fresh else 1.0 - options["dampening"]
        along, ahead = (rho, 1.0) if options["nesterov"] else (1.0, 0.0)
        if options["momentum_form"] == "velocity":
            return Coefficients(rho, -lr * take, along, -lr * ahead)
        return Coefficients(rho, take, -lr * along, -lr * ahead)


class AdamFactors(NamedTuple):
    """The arguments of `algebra.adam` that are the same for all points."""

    beta2: Any
    rest: Any
    rate: Any
    correction: Any
    eps: Any


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015) with one second moment per point: the squared length of the gradient.

    On ``Euclidean(0)`` every coordinate is a point, and this is Adam itself. Option `eps_form`: ``"outside"``
    divides by √v̂ + ε (torch), ``"inside"`` by √(v + ε), with both bias corrections in the step size (Adam-G).
    """

    vectors = ("exp_avg",)
    options = frozenset({"betas"})
    scalars = ("exp_avg_sq",)
    counts_steps = True

    def factors(self, step: Any, options: Options) -> AdamFactors:
        """The factors of step number `step`, from 1."""
        (beta1, beta2), lr = options["betas"], options["lr"]
        return AdamFactors(
            beta2, (1.0 - beta2) ** 0.5, lr / (1.0 - beta1**step), (1.0 - beta2**step) ** 0.5, options["eps"]
        )

    def __call__(self, length: Tensor, memory: Memory, options: Options) -> Coefficients:
        assert memory.step is not None
        beta1 = options["betas"][0]
        # Reading the counter would wait for the device, so a captured step computes with a tensor.
        as_tensor = options["capturable"] or options["differentiable"]
        step = memory.step.to(length.dtype) if as_tensor else memory.step.item()
        inside = options["eps_form"] == "inside"
        square, along = algebra.adam(length, memory.scalars["exp_avg_sq"], *self.factors(step, options), inside)
        memory.scalars["exp_avg_sq"] = square
        return Coefficients(beta1, 1.0 - beta1, along)


@dataclass(frozen=True)
class CoordinateAdam(Adam):
    """Adam with one second moment per coordinate, also where the coordinates are those of one point (option `second_moment`).

    It averages the squares of the coordinates of the gradient in units of the point's size, so that on PSI the run does not depend
    on the representative.
    """

    scalars = ()  # type: ignore[assignment]
    arrays = ("exp_avg_sq",)

    def __call__(self, length: Tensor, memory: Memory, options: Options) -> Coefficients:
        numbers = Memory(memory.dtype, memory.fresh, scalars=memory.arrays, step=memory.step)
        return super().__call__(length, numbers, options)


@dataclass(frozen=True)
class SteadyAdam(CoordinateAdam):
    """Adam whose steps have the learning rate for their average length: they are divided by the root of an average of their squared
    lengths (Kosson et al. 2024)."""

    scalars = ("step_sq",)  # type: ignore[assignment]
    averages_steps = True

    def steadied(self, length: Tensor, memory: Memory, options: Options) -> Tensor:
        assert memory.step is not None
        square = _DECAY * memory.scalars["step_sq"] + (1.0 - _DECAY) * length.square()
        memory.scalars["step_sq"] = square
        return 1.0 / ((square / (1.0 - _DECAY ** memory.step.to(square))).sqrt() + 1e-8)


_DECAY = 0.9
