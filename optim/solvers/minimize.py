"""`minimize`: a function of points on manifolds, in scipy's manner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ...errors import GeometryError, OptionError, ProblemError
from ...manifolds import Manifold
from ...manifolds.numerics import full_precision
from .algorithms import LineSearchMethod, TrustRegions, named
from .descent import descend
from .objective import Objective
from .progress import OptimizeResult, Record, Run, Stopped
from .space import Arrays, Space
from .trust_regions import descend_in_regions

__all__ = ["minimize"]

_DTYPES = (torch.float64, torch.float32)


def minimize(
    f: Callable[[Any], Tensor],
    x0: Any,
    manifold: Any,
    method: str | LineSearchMethod | TrustRegions = "lbfgs",
    *,
    gtol: float = 0.0,
    gtol_rel: float | None = None,
    xtol: float = 0.0,
    ftol: float = 0.0,
    max_iter: int = 10_000,
    max_time: float = math.inf,
    callback: Callable[[Any, Record], Any] | None = None,
    display: bool = False,
) -> OptimizeResult:
    """Minimize `f` over a manifold, or over a structure of tensors on a like structure of manifolds: a product.

    There is no learning rate. L-BFGS is the default; trust regions need the fewest iterations and reach the shortest gradients, where f has
    second derivatives.

    Example:
        >>> import torch
        >>> from retract.manifolds import Stiefel
        >>> from retract.optim import minimize
        >>> a = torch.diag(torch.arange(1.0, 21.0, dtype=torch.float64))
        >>> x0 = Stiefel().random_point(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = minimize(lambda x: (x.mT @ a @ x).trace(), x0, Stiefel())
        >>> found.success, round(found.fun, 9)  # the two smallest eigenvalues
        (True, 3.0)

    Args:
        f: from a point, shaped like `x0`, to a real number as a tensor of one element, by functions that torch can differentiate.
        x0: the start: a tensor, (*batch, *event), or dicts, lists and tuples of them, in float32 or float64, on any device. All points of a
            batch are minimized together. It is not written to.
        manifold: a `Manifold`, or the same structure of them.
        method: ``"lbfgs"``, ``"conjugate_gradients"``, ``"trust_regions"``, ``"steepest_descent"``, or a method with options of its own, such
            as ``LBFGS(memory=20)``.
        gtol: end when the gradient is as short as this, in the metric. `gtol_rel` holds too: the first of both ends the run.
        gtol_rel: end when it is as short as this share of its length at x0; None: 1e-9, or 1e-4 if f or a tensor of x0 is in float32;
            0: never.
        xtol: end when a step is as short as this.
        ftol: end when a step lowers f by at most this share of max(|f|, 1); 0: never.
        max_iter: the most iterations.
        max_time: the most seconds; the step at hand is finished.
        callback: called as ``callback(x, record)`` at the start and after every iteration, with a copy of x and the `Record` of the
            history. ``StopIteration`` ends the run with success.
        display: whether to print a line per iteration.

    Returns:
        The result; its `success` says whether a tolerance was reached, f cannot be lowered any more, or the callback ended the run, and
        its `message` why the run ended. If f or the callback raises after the start, the result is what was reached so far, with the
        exception in `exception`; KeyboardInterrupt too.

    Raises:
        ProblemError: f is not finite at x0, returns no real number, does not depend on x, or cannot be differentiated twice as
            ``hessian="pullback"`` asks.
        GeometryError: x0 is not on the manifold, or its structure is not that of `manifold`.
        OptionError: a tolerance or a method that is none.
    """
    leaves, tree = tree_flatten(x0)
    manifolds = _manifolds(leaves, tree, manifold)
    chosen = named(method)
    _check(gtol=gtol, gtol_rel=gtol_rel, xtol=xtol, ftol=ftol, max_iter=max_iter, max_time=max_time)

    def nested(x: Arrays) -> Any:
        return x[0] if isinstance(x0, Tensor) else tree_unflatten(x, tree)

    objective = Objective(lambda x: f(nested(x)), Space(manifolds))
    with torch.inference_mode(False), torch.no_grad(), full_precision():
        state = objective.start([a.detach().clone() for a in leaves])
        if gtol_rel is None:
            gtol_rel = 1e-9 if objective.eps == torch.finfo(torch.float64).eps else 1e-4
        run = Run(
            objective, state, gtol, gtol_rel, xtol, ftol, max_iter, max_time, display,
            None if callback is None else lambda x, record: callback(nested(x), record),
        )  # fmt: skip
        message, success, exception = _run(run, chosen)
    last, counts = run.state, objective.counts
    return OptimizeResult(
        nested(last.x), objective.unit * last.f, objective.unit * math.sqrt(last.square), max(len(run.history) - 1, 0), counts.nfev, counts.njev, counts.nhev,
        success, message, run.history, exception,
    )  # fmt: skip


def _run(run: Run, method: LineSearchMethod | TrustRegions) -> tuple[str, bool, BaseException | None]:
    """Why the run ended, whether with success, and the exception that ended it."""
    try:
        run.accept(run.state, 0.0)
    except Stopped as end:
        return str(end), end.success, None
    try:
        if isinstance(method, TrustRegions):
            descend_in_regions(run, method)
        else:
            descend(run, method)
    except Stopped as end:
        return str(end), end.success, None
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, ProblemError) and len(run.history) == 1:
            raise  # nothing was reached
        return f"{type(error).__name__}: {error}", False, error
    raise AssertionError("a method returned without the end of its run")


def _manifolds(leaves: list[Any], tree: TreeSpec, manifold: Any) -> list[Manifold]:
    """The manifold of each leaf; raises for what is no point."""
    try:
        manifolds = tree.flatten_up_to(manifold)
    except ValueError as error:
        raise GeometryError(
            f"the structure of manifold is not that of x0 ({error}): give one manifold per tensor, in the same dicts, lists and tuples"
        ) from None
    if not leaves:
        raise GeometryError("x0 has no tensors")
    for i, (x, own) in enumerate(zip(leaves, manifolds, strict=True)):
        name = "x0" if len(leaves) == 1 else f"tensor {i} of x0"
        if not isinstance(own, Manifold):
            raise GeometryError(
                f"the manifold of {name} is {own!r}, and not a Manifold such as Sphere() or Euclidean()"
            )
        if not isinstance(x, Tensor) or x.dtype not in _DTYPES:
            kind, remedy = (
                (str(x.dtype), "double()") if isinstance(x, Tensor) else (type(x).__name__, "torch.as_tensor()")
            )
            raise GeometryError(
                f"{name} is {kind}, and solvers need tensors of float32 or float64; convert it with {remedy}"
            )
        own.check_point(x.detach(), name)
    return manifolds


def _check(**options: Any) -> None:
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise OptionError(f"{name}={value!r} is not a number ≥ 0")
