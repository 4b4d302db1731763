"""L-BFGS as an optimizer of declared modules, with the closures and options of `torch.optim.LBFGS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...errors import OptionError, StateError
from ...manifolds import Euclidean
from ...manifolds.numerics import full_precision, in_this_precision
from ...manifolds.parameters.rows import gather, scatter_
from ...manifolds.parameters.shards import is_sharded
from ..execution.points import PointSet, Table
from ..groups import Marks
from ..tables import check_values, described, table_of, taken
from .algorithms import steepest
from .objective import State, Trial
from .pairs import Pairs
from .searches import StrongWolfe
from .space import Arrays, Space

__all__ = ["RiemannianLBFGS"]


class RiemannianLBFGS(torch.optim.Optimizer):
    """L-BFGS for the parameters of a module, on their manifolds; equal to `torch.optim.LBFGS` in flat space.

    All parameters together are a point of one product of manifolds, with one step length. Pairs of steps and changes of gradients are
    carried along by the transports of the manifolds (Huang, Absil & Gallivan 2018). For functions of tensors, and for twelve digits,
    use `minimize`.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Linear(4, 2, bias=False, dtype=torch.float64)
        >>> retract.declare(model, "weight", retract.manifolds.Sphere())
        >>> retract.project_(model)
        >>> optimizer = retract.optim.RiemannianLBFGS(retract.param_groups(model), line_search_fn="strong_wolfe")
        >>> inputs = torch.eye(4, dtype=torch.float64)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(inputs)[0].sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> round(closure().item(), 6)  # two unit vectors with the coordinate −1
        -2.0

    Args:
        params: parameters, groups, or ``retract.param_groups(model)``. Groups differ in their geometry alone.
        lr: the step length that is tried first; the step itself without a line search.
        max_iter: iterations per call of `step`.
        max_eval: evaluations of the closure per call; None: 1.25 `max_iter`.
        tolerance_grad: a call ends when no point has a longer gradient; in flat space a point is a coordinate.
        tolerance_change: it ends when no point moves further, f changes less, or its slope is flatter.
        history_size: the number of pairs.
        line_search_fn: ``"strong_wolfe"`` or None, as in torch.

    Raises:
        OptionError: an option outside its interval; groups with options of their own; sharded parameters.
        GeometryError: a parameter that does not fit its manifold, or is not on it.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        self._table: Table = {}
        self._marks = Marks()
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; `param_group` is not written to. The next step starts anew, without pairs.

        Raises:
            OptionError: options of its own; sharded parameters.
            GeometryError: a parameter that does not fit the manifold, or is not on it.
            DeclarationError: a zero or non-finite row; a declared parameter in a group without a manifold.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group, geometry = taken(param_group)
        rest = group.pop("euclidean", None)
        own = {
            name: value
            for name, value in {**group, **(rest or {})}.items()
            if name not in ("params", "param_names", "name")
        }
        differing = [name for name, value in own.items() if name not in self.defaults or self.defaults[name] != value]
        if differing:
            raise OptionError(
                f"{differing[0]} in a group: all groups of RiemannianLBFGS are one product of manifolds with one step, so options are "
                "arguments of the optimizer"
            )
        before = len(self.param_groups)
        super().add_param_group(group)
        try:
            table = table_of(group, geometry, Euclidean(0), type(self).__name__)
            sets = [*chain.from_iterable(table.values())]
            group.update(described(group["params"], sets, geometry))
            for points in sets:
                if any(map(is_sharded, points.parts)):
                    raise OptionError(
                        f"{points.name} is sharded, and RiemannianLBFGS keeps its pairs in one process; use RiemannianSGD or RiemannianAdam"
                    )
                check_values(points)
        except Exception:
            del self.param_groups[before:]
            raise
        self._table.update(table)
        self._marks.add(group["params"])
        self.state.clear()  # pairs belong to a point of all parameters

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_table": self._table, "_marks": self._marks}

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Up to `max_iter` iterations.

        Args:
            closure: clears the gradients, re-evaluates the model, calls ``backward()`` and returns the loss.

        Returns:
            The loss at the start.

        Raises:
            GradientError: a gradient that does not fit its parameter, a joint point of which only some parts have one.
            StateError: a loaded state that does not fit.
            DeclarationError: a parameter that was declared after it was added.
        """
        self._marks.check(self._table)
        closure = in_this_precision(torch.enable_grad()(closure))
        with full_precision():
            return _Call(self, closure).run()

    def _points(self) -> Iterator[PointSet]:
        return chain.from_iterable(self._table.values())


class _Call:
    """One call of `step`."""

    def __init__(self, optimizer: RiemannianLBFGS, closure: Callable[[], Any]) -> None:
        self.options = optimizer.param_groups[0]
        _check(self.options)
        self.points = [*optimizer._points()]
        self.layouts = [points.layouts() for points in self.points]
        self.space = Space([points.manifold for points in self.points])
        self.closure = closure
        lead = self.points[0].parts[0]  # as in torch, where loading casts the state to its dtype
        self.state = optimizer.state[lead]
        self.pairs = Pairs(self.space, self.options["history_size"], lambda sy, ss, square: sy > 1e-10)
        self.evaluations = 0

    def run(self) -> Any:
        options, state, space = self.options, self.state, self.space
        x = [gather(points.parts, layouts).clone() for points, layouts in zip(self.points, self.layouts, strict=True)]
        self._recall(x)
        loss, here = self._evaluate(x)
        if self._longest(here.x, here.gradient) <= options["tolerance_grad"]:
            return loss
        for iteration in range(1, options["max_iter"] + 1):
            state["n_iter"] += 1
            d, slope, length = self._direction(here)
            if slope > -options["tolerance_change"]:
                break
            t = float(options["lr"])
            if state["n_iter"] == 1:
                lengths = [m.norm(a, g).sum() for m, a, g in zip(space.manifolds, here.x, here.gradient, strict=True)]
                t *= min(1.0, 1.0 / float(sum(lengths)))
            last = iteration == options["max_iter"]
            there, t = self._move(here, d, slope, length, t, last)
            if there is None:
                break
            before, here = here, there
            if last or self.evaluations >= options["max_eval"]:
                break
            if self._longest(here.x, here.gradient) <= options["tolerance_grad"]:
                break
            if t * self._longest(before.x, d) <= options["tolerance_change"]:
                break
            if abs(here.f - before.f) < options["tolerance_change"]:
                break
        self._put(here.x)
        self._keep(here.x)
        return loss

    def _direction(self, here: State) -> tuple[Arrays, float, float]:
        """The direction at `here`, its slope and its length."""
        if self.state["n_iter"] == 1:
            self.pairs.forget()
        self.pairs.append(here.gradient)
        return self.pairs.direction(here.x, here.gradient, here.square) or steepest(here)

    def _move(
        self, here: State, d: Arrays, slope: float, length: float, t: float, last: bool
    ) -> tuple[State | None, float]:
        """The state after a step along `d`, None if a search has found none, and how far it went; carries the pairs to it."""
        options, space = self.options, self.space
        if options["line_search_fn"] is None:
            x = space.each("retract", here.x, [t * a for a in d])
            # The gradient after the last iteration is taken by the next call, in a stochastic setting of another batch.
            there = here._replace(x=x) if last else self._evaluate(x)[1]
        else:
            found = self._search(here, d, slope, t)
            if found is None or found.state is None:
                return None, 0.0
            there, t = found.state, found.t
        self.pairs.carry(here.x, here.gradient, [t * a for a in d], there.x, t * length)
        return there, t

    def _search(self, here: State, d: Arrays, slope: float, t: float) -> Trial | None:
        """A trial on the way along `d`; the first one is made at all events, as in torch."""
        trials = self.options["max_eval"] - self.evaluations
        if trials < 1:
            only = self._along(here, d, t)
            return only if only.f < here.f else None
        search = StrongWolfe(max_trials=trials, shortest=self.options["tolerance_change"] / self._longest(here.x, d))
        return search(lambda t: self._along(here, d, t), Trial(0.0, here.f, slope, here), t, 0.0)

    def _along(self, here: State, d: Arrays, t: float) -> Trial:
        """The trial at `t`, as in `Objective.along`."""
        space, u = self.space, [t * a for a in d]
        x, carried = space.moved(here.x, u, d)
        state = self._evaluate(x)[1]
        if not (math.isfinite(state.f) and math.isfinite(state.square)):
            return Trial(t, math.inf, math.nan, None)
        return Trial(t, state.f, float(space.inner(x, carried, state.gradient)), state)

    def _evaluate(self, x: Arrays) -> tuple[Any, State]:
        """What the closure returns at `x`, and the state there."""
        self._put(x)
        loss = self.closure()
        self.evaluations += 1
        self.state["func_evals"] += 1
        gradient = self.space.each("riemannian_gradient", x, self._egrad())
        return loss, State(
            x,
            float(loss.detach() if isinstance(loss, Tensor) else loss),
            gradient,
            float(self.space.inner(x, gradient, gradient)),
        )

    def _egrad(self) -> Arrays:
        found = []
        for points, layouts in zip(self.points, self.layouts, strict=True):
            grads = points.gradients() or [torch.zeros_like(part) for part in points.parts]
            found.append(gather(grads, layouts).clone())
        return found

    def _put(self, x: Arrays) -> None:
        for a, points, layouts in zip(x, self.points, self.layouts, strict=True):
            scatter_(a.clone(), points.parts, layouts)
        torch.clear_autocast_cache()  # casts of the parameters as they were

    def _longest(self, x: Arrays, u: Arrays) -> float:
        """The length of the longest tangent of a point."""
        return max(
            (float(m.norm(a, b).max()) for m, a, b in zip(self.space.manifolds, x, u, strict=True) if a.numel()),
            default=0.0,
        )

    def _recall(self, x: Arrays) -> None:
        """Take the pairs of the last call, unless the parameters have moved since."""
        state = self.state
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        known = state.get("point")
        if known is None:
            return
        if len(known) != len(x) or any(a.shape != b.shape for a, b in zip(known, x, strict=True)):
            raise StateError("the state of RiemannianLBFGS is that of other parameters; build a new optimizer")
        if not all(torch.equal(a.to(b), b) for a, b in zip(known, x, strict=True)):
            return
        self.pairs.stacks = _like(state["pairs"], x)
        if state["step"] is not None:
            self.pairs.last = _like(state["step"], x), _like(state["gradient"], x)

    def _keep(self, x: Arrays) -> None:
        last = self.pairs.last or (None, None)
        self.state.update(point=x, pairs=self.pairs.stacks, step=last[0], gradient=last[1])


def _like(arrays: Arrays | None, x: Arrays) -> Any:
    """Loaded arrays in the dtype and on the device of the points."""
    return None if arrays is None else [a.to(b) for a, b in zip(arrays, x, strict=True)]


def _check(options: Mapping[str, Any]) -> None:
    """Raise `OptionError` for options outside their intervals."""
    for name in ("lr", "tolerance_grad", "tolerance_change"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int | float | Tensor) or not float(value) >= 0:
            raise OptionError(f"{name}={value!r} is not a number ≥ 0")
    for name in ("max_iter", "max_eval", "history_size"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise OptionError(f"{name}={options[name]!r} is not an integer ≥ 1")
    if options["line_search_fn"] not in (None, "strong_wolfe"):
        raise OptionError(f"line_search_fn={options['line_search_fn']!r} is not 'strong_wolfe' or None")
