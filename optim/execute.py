"""How a parameter group runs: which path its points take, decided in one place. Layout and choice only; no formula.

=============  ====================================================================================================
path           runs
=============  ====================================================================================================
*reference*    one point set at a time through `step.update`: everything, and always when `capturable` or
               `differentiable`, and for rules of a user's own
*foreach*      many parameters in one `step.update`: vectors, on any device
*compiled*     many parameters in one graph of `torch.compile`, on a GPU: everything, when `compile` asks for it
*fused*        row kernels: PSI, Sphere, Grassmann(1)
torch          Euclidean points whose rule torch has, on torch's path of the same name
=============  ====================================================================================================

`foreach` and `fused` are read as in torch: with both at None the fastest path that is installed runs, an explicit value
of either leaves the other at False.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor

from ..manifolds import PSI, Euclidean, Manifold, Sphere
from ..manifolds.errors import OptionError, install
from ..manifolds.grassmann import Lines
from .compiled import Compiled
from .flat import Torch, torch_has
from .foreach import Foreach
from .fused import Fused
from .kernels.launch import Kernel
from .matrices import Seat, seat
from .options import Options
from .plan import Plan
from .points import PointSet, State, check_state, point_sets
from .reference import Reference
from .rules import Adam, Momentum, Rule

__all__ = ["Group", "check_path"]

TINY = 2**14
"""Elements up to which torch's foreach beats its fused path on a CPU: 6 µs a tensor against 12 at 64 elements, level
at 2^15, 650 against 1,100 at 2^20."""
SMALL = 2**16
"""Elements up to which a parameter is stacked with others by default; on a CPU foreach loses on larger ones."""

_BACKENDS = {
    "cpu": ("numba", "numba_rows", (torch.float32, torch.float64)),
    "cuda": ("triton", "triton_rows", (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
}
_COMPILED = ("cuda",)
_NO_COMPILER = (
    "torch's compiler for CPUs fails on rows that are updated in place (seen in 2.13); row kernels (fused) do the same in "
    "one pass"
)
_STACKABLE = (Euclidean, PSI, Sphere, Lines)


@cache
def _kernel(package: str, module: str) -> Kernel | str:
    """The backend, or why it is not there."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed; install it with {install('fused')}"
    try:
        return cast(Kernel, importlib.import_module(f".kernels.{module}", __package__))
    except ImportError as error:
        return f"{package} cannot be used ({error}); mend that, or reinstall it with {install('fused')}"


def kernel_for(manifold: Manifold, dtype: torch.dtype, device: torch.device) -> Kernel | str:
    """The row kernels for such points, or why there are none and what to do."""
    if type(manifold) not in (PSI, Sphere, Lines):
        return f"there is no row kernel for {manifold!r}, only for PSI, Sphere and Grassmann(1)"
    if device.type not in _BACKENDS:
        return f"there are no row kernels for {device.type}"
    package, module, dtypes = _BACKENDS[device.type]
    if dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"row kernels on {device.type} take {names}, not {str(dtype).removeprefix('torch.')}"
    return _kernel(package, module)


def check_path(points: PointSet, rule: Rule, options: Options) -> None:
    """Raise `OptionError` if `points` cannot take the path that the options ask for, with the reason and a way out."""
    part, manifold = points.parts[0], points.manifold
    asked = [name for name in ("foreach", "fused", "compile") if options[name]]
    if asked and not _is_own(rule):
        raise OptionError(
            f"{asked[0]}=True: {type(rule).__name__} runs on the reference path, which takes any rule; leave {asked[0]} at its "
            "default"
        )
    if part.is_meta:
        return
    if options["compile"] and part.device.type not in _COMPILED:
        raise OptionError(f"compile=True on {points.name}: {_NO_COMPILER}. Or leave compile at False")
    if options["fused"] and not isinstance(manifold, Euclidean):
        found = kernel_for(manifold, part.dtype, part.device)
        if isinstance(found, str):
            raise OptionError(
                f"fused=True on {points.name}: {found}. Or leave fused at None for the fastest path there is"
            )
    if options["foreach"] and type(manifold) not in _STACKABLE:
        raise OptionError(
            f"foreach=True on {points.name}: {manifold!r} is not a manifold of vectors that stack. Or leave foreach at None"
        )


def _is_own(rule: Rule) -> bool:
    """Whether the fast paths know `rule`; a subclass computes something else."""
    return type(rule) in (Momentum, Adam)


def _choose(seat: Seat, rule: Rule, options: Options) -> str:
    """The path of one point set."""
    manifold, part = seat.points.manifold, seat.points.parts[0]
    foreach, fused = options["foreach"], options["fused"]
    automatic = foreach is None and fused is None
    if (
        options["capturable"]
        or options["differentiable"]
        or not _is_own(rule)
        or part.is_meta
        or not all(p.numel() for p in seat.points.parts)
    ):
        return "reference"
    if options["compile"]:
        return "compiled"
    half = part.dtype in (torch.float16, torch.bfloat16)
    if isinstance(manifold, Euclidean):
        # Half precision is computed in float32 and rounded once, which torch does on its fused path only. On a CPU that path
        # is none for SGD: the kernel of 2.13 leaves most of a parameter in half precision where it is.
        whole = not half or (fused and (isinstance(rule, Adam) or part.device.type != "cpu"))
        if seat.lies and torch_has(manifold, rule, options) and whole:
            if automatic:
                fused = part.device.type == "cpu" and part.numel() > TINY
                foreach = not fused
            return "torch fused" if fused else "torch foreach" if foreach else "torch"
    elif (fused or automatic) and not isinstance(kernel_for(manifold, part.dtype, part.device), str):
        return "fused"
    if type(manifold) not in _STACKABLE:
        return "reference"
    if foreach:
        return "foreach"
    small = part.numel() <= SMALL or part.device.type != "cpu"
    return "foreach" if (automatic or fused) and small and seat.lies and not half else "reference"


def _plan(path: str, seats: Sequence[Seat], state: State, rule: Rule, options: Options) -> Plan:
    part = seats[0].points.parts[0]
    if path.startswith("torch"):
        return Torch(seats, state, rule, foreach=path == "torch foreach", fused=path == "torch fused")
    if path == "fused":
        kernel = kernel_for(seats[0].points.manifold, part.dtype, part.device)
        assert not isinstance(kernel, str)
        return Fused(seats, state, rule, kernel)
    if path == "compiled":
        return Compiled(seats, state, rule)
    if path == "foreach":
        return Foreach(seats, state, rule)
    return Reference(seats, state, rule, loose=options["capturable"] or options["differentiable"] or not _is_own(rule))


class Group:
    """One parameter group from step to step: its plans, kept as long as nothing but addresses changes."""

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._settings: tuple[Any, ...] = ()
        self._idle: list[Tensor] = []
        self._plans: list[Plan] = []

    @property
    def plans(self) -> Sequence[Plan]:
        """In the order in which `prepare` gives their work."""
        return self._plans

    def prepare(
        self, table: Mapping[Tensor, PointSet], state: State, rule: Rule, options: Options, known: bool
    ) -> Sequence[Callable[[], None]]:
        """What a step of the group does, checked. Writes nothing.

        `known` says that each parameter's state is still the dict that it was in the last step.

        Raises `GradientError`, `StateError` and `OptionError` for what cannot be done.
        """
        settings = tuple(bool(options.get(name)) if name == "momentum" else options.get(name) for name in _SETTINGS)
        params: list[Tensor] = options["params"]
        same = known and len(params) == len(self._params) and all(map(is_, params, self._params))
        same = same and self._settings == settings and not any(plan.pending for plan in self._plans)
        if same and all(p.grad is None for p in self._idle):
            work = [plan.prepare(options) for plan in self._plans]
            if None not in work:
                return work  # type: ignore[return-value]
        self._params, self._settings = [], settings
        self._plans, self._idle = [], []
        kinds: dict[tuple[Any, ...], list[Seat]] = {}
        for points in point_sets(params, table):
            grads = points.gradients()
            if not grads:
                self._idle += points.parts
                continue
            check_path(points, rule, options)
            check_state(points, state, rule)
            its = seat(points, grads, state, rule, options)
            path = _choose(its, rule, options)
            part = points.parts[0]
            kinds.setdefault((path, points.manifold, part.dtype, part.device, its.kept), []).append(its)
        self._plans = [_plan(key[0], its, state, rule, options) for key, its in kinds.items()]
        work = [plan.prepare(options) for plan in self._plans]
        assert None not in work
        self._params = list(params)
        return work  # type: ignore[return-value]


_SETTINGS = (
    "foreach", "fused", "compile", "capturable", "differentiable", "momentum", "momentum_form", "eps_form", "radius"
)  # fmt: skip
