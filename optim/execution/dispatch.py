"""The execution of a parameter group: the choice of a path for each point set, and the plans of the paths. No formula.

=============  ====================================================================================================
path           runs
=============  ====================================================================================================
*reference*    one point set at a time through `update.update`: all manifolds and rules; always with `capturable` or
               `differentiable`
*foreach*      rows of many parameters through torch's functions for lists: PSI, Sphere, ProjectiveSpace, on any device
*fused*        row kernels: the same manifolds and hyperbolic space, on devices with a backend
torch          Euclidean points whose rule torch has, on torch's path of the same name
=============  ====================================================================================================

`foreach` and `fused` mean what they mean in torch: with both at None the fastest installed path runs, and an explicit value
of one leaves the other at False.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ...errors import OptionError, install
from ...manifolds import Euclidean, Hyperbolic, Manifold, Spherical
from ...manifolds.parameters.shards import is_sharded
from ..kernels.launch import Kernel, is_constant
from ..options import Options, needs_reference, read_by
from ..rules import Adam, Rule
from .euclidean import Torch, torch_has
from .operands import Operand, make_operand
from .pairs import are_in_place
from .plan import Plan
from .points import PointSet, State, check_state, passed_over, point_sets
from .reference import Reference
from .rows import Fused, Lists

__all__ = ["BACKENDS", "Group", "Path", "Paths", "check_path", "has_lists", "paths"]

TINY = 2**14
"""Elements up to which torch's foreach path is faster than its fused path on a CPU: 6 µs a tensor against 12 at 64 elements,
equal at 2^15, 650 against 1,100 at 2^20."""
BACKENDS = {
    "cpu": ("numba", "..kernels.numba_rows", (torch.float32, torch.float64)),
    "cuda": ("triton", "..kernels.triton_rows", (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
}
"""Row kernels by type of device: the package that they need, their module, a `launch.Kernel`, and the dtypes they support."""
HYPERBOLIC_BACKENDS = {
    "cpu": ("numba", "..kernels.numba_hyperbolic", (torch.float32,)),
    "cuda": ("triton", "..kernels.triton_hyperbolic", (torch.float32,)),
}
"""Those of hyperbolic rows. They have float64 for sums of float32; for float64 the maps have more digits."""
_DECISIVE = read_by("plan")


@cache
def _kernel(package: str, module: str) -> Kernel | str:
    """The backend, or the reason why it is not available."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed; install it with {install('fused')}"
    try:
        return cast(Kernel, importlib.import_module(module, __package__))
    except ImportError as error:
        return f"{package} cannot be imported ({error}); fix that, or reinstall it with {install('fused')}"


def has_lists(manifold: Manifold) -> bool:
    """Whether `lists` has the formulas of `manifold`; there are row kernels for it too."""
    return isinstance(manifold, Spherical) and manifold.row_kernel is not None


def kernel_for(manifold: Manifold, dtype: torch.dtype, device: torch.device, rule: Rule) -> Kernel | str:
    """The row kernels for such points, or the reason why there are none."""
    hyperbolic = isinstance(manifold, Hyperbolic) and manifold.row_kernel is not None
    if len(rule.stored) > 1:
        return f"row kernels support one vector per point, and {type(rule).__name__} has {len(rule.stored)}"
    if not has_lists(manifold) and not hyperbolic:
        return (
            f"there is no row kernel for {manifold!r}, only for PSI, Sphere, ProjectiveSpace, PoincareBall, Lorentz and classes "
            "with a row_kernel"
        )
    if hyperbolic and not (type(rule) is Adam or is_constant(rule)):
        return f"row kernels for {manifold!r} support rules with the same coefficients for all points, and Adam"
    backends = HYPERBOLIC_BACKENDS if hyperbolic else BACKENDS
    if device.type not in backends:
        return f"there are no row kernels for {device.type}"
    package, module, dtypes = backends[device.type]
    if dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"row kernels for {manifold!r} on {device.type} support {names}, not {str(dtype).removeprefix('torch.')}"
    return _kernel(package, module)


def check_path(points: PointSet, rule: Rule, options: Options) -> None:
    """Raise `OptionError` if `points` cannot take the requested path."""
    part, manifold = points.parts[0], points.manifold
    if part.is_meta:
        return
    beyond = needs_reference(manifold, rule, options)
    asked = [name for name in ("fused", "foreach") if options[name] and beyond]
    if asked:
        raise OptionError(f"{asked[0]}=True on {points.name}: {beyond}. Leave {asked[0]} at None")
    if options["fused"] and not isinstance(manifold, Euclidean):
        found = kernel_for(manifold, part.dtype, part.device, rule)
        if isinstance(found, str):
            raise OptionError(
                f"fused=True on {points.name}: {found}. Or leave fused at None for the fastest available path"
            )
    if options["foreach"] and not isinstance(manifold, Euclidean) and not has_lists(manifold):
        raise OptionError(
            f"foreach=True on {points.name}: torch's functions for lists support PSI, Sphere, ProjectiveSpace, classes with a "
            f"row_kernel and flat space, not {manifold!r}. Leave foreach at None"
        )


def choose(operand: Operand, rule: Rule, options: Options) -> tuple[str, str]:
    """The path of one point set, and the reason."""
    manifold, part = operand.points.manifold, operand.points.parts[0]
    foreach, fused = options["foreach"], options["fused"]
    automatic = foreach is None and fused is None
    for name in ("capturable", "differentiable"):
        if options[name]:
            return "reference", f"{name}=True"
    if part.is_meta or not all(p.numel() for p in operand.points.parts):
        return "reference", "it has no elements" if not part.is_meta else "it is on the meta device"
    beyond = needs_reference(manifold, rule, options)
    if beyond:
        return "reference", beyond
    half = part.dtype in (torch.float16, torch.bfloat16)
    if isinstance(manifold, Euclidean):
        # Half precision is computed in float32 and rounded once, which torch does on its fused path only, and for SGD on a CPU
        # not even there: the kernel of 2.13 does not update most of a parameter in half precision.
        precise = not half or (fused and (isinstance(rule, Adam) or part.device.type != "cpu"))
        if not torch_has(manifold, rule, options):
            return "reference", f"torch.optim has no such rule for {manifold!r}"
        if not operand.contiguous or not precise:
            return "reference", "it is copied to contiguous rows" if precise else f"{part.dtype} is computed in float32"
        if automatic:
            fused = part.device.type == "cpu" and part.numel() > TINY
            foreach = not fused
        path = "torch fused" if fused else "torch foreach" if foreach else "torch"
        return path, f"{part.numel()} elements" if automatic else "as asked for"
    found = kernel_for(manifold, part.dtype, part.device, rule)
    if automatic and has_lists(manifold) and part.is_cpu and operand.strided:
        return "foreach", "its rows are strided, and kernels would copy them"
    if (fused or automatic) and not isinstance(found, str):
        return "fused", found.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    if not has_lists(manifold):
        return "reference", found if isinstance(found, str) else "foreach=False"
    if automatic or foreach or fused:
        return "foreach", "as asked for" if foreach else str(found)
    return "reference", "foreach=False"


def _plan(path: str, operands: Sequence[Operand], state: State, rule: Rule) -> Plan:
    part = operands[0].points.parts[0]
    if path.startswith("torch"):
        return Torch(operands, state, rule, foreach=path == "torch foreach", fused=path == "torch fused")
    if path == "fused":
        kernel = kernel_for(operands[0].points.manifold, part.dtype, part.device, rule)
        assert not isinstance(kernel, str)
        return Fused(operands, state, rule, kernel)
    if path == "foreach":
        return Lists(operands, state, rule)
    return Reference(operands, state, rule)


class Path(NamedTuple):
    """The path of a parameter, and the reason."""

    name: str
    geometry: str
    path: str
    reason: str


class Paths(tuple[Path, ...]):
    """The paths of all parameters of an optimizer; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        rows = [("parameter", "on", "path", "why"), *self]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows)


def paths(
    params: Sequence[Tensor], table: Mapping[Tensor, Sequence[PointSet]], state: State, rule: Rule, options: Options
) -> list[Path]:
    """The paths of one group in its next step; a parameter without a gradient is treated as if it had one."""
    found = []
    for points in point_sets(params, table):
        if any(map(passed_over, points.parts)):
            path, reason = "none", "it is frozen, and no update is defined for its kind"
        elif any(map(is_sharded, points.parts)):
            path, reason = "sharded", "each process updates its shard"
        elif points.slices is not None:
            in_place = are_in_place(points, state, rule, options)
            path = "slices"
            reason = "in place" if in_place else "copied to points, which take the path of their manifold"
        else:
            grads = points.gradients() or [part.detach() for part in points.parts]
            path, reason = choose(make_operand(points, grads, state, rule, options), rule, options)
        found.append(Path(points.name, repr(points.manifold), path, reason))
    return found


class Group:
    """The execution of one parameter group; its plans are reused as long as nothing but addresses changes."""

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._settings: tuple[Any, ...] = ()
        self._idle: list[Tensor] = []
        self._plans: list[Plan] = []

    @property
    def plans(self) -> Sequence[Plan]:
        """The plans, in the order of the functions that `prepare` returns."""
        return self._plans

    def prepare(
        self, table: Mapping[Tensor, Sequence[PointSet]], state: State, rule: Rule, options: Options, known: bool
    ) -> Sequence[Callable[[], None]]:
        """Check a step of the group, and return the functions that carry it out; writes nothing.

        `known`: whether the state of each parameter is the same dict as in the last step.

        Raises `GradientError`, `StateError` and `OptionError` for gradients, state and options that do not fit.
        """
        settings = (*rule.needs(options), *(options.get(name) for name in _DECISIVE))
        params: list[Tensor] = options["params"]
        same = known and len(params) == len(self._params) and all(map(is_, params, self._params))
        same = same and self._settings == settings and not any(plan.pending for plan in self._plans)
        if same and all(p.grad is None for p in self._idle):
            work = [plan.prepare(options) for plan in self._plans]
            if None not in work:
                return work  # type: ignore[return-value]
        self._params, self._settings = [], settings
        self._plans, self._idle = [], []
        kinds: dict[tuple[Any, ...], list[Operand]] = {}
        for points in point_sets(params, table):
            grads = points.gradients()
            if not grads:
                self._idle += points.parts
                continue
            check_path(points, rule, options)
            check_state(points, state, rule)
            operand = make_operand(points, grads, state, rule, options)
            path, _ = choose(operand, rule, options)
            kinds.setdefault((path, operand.kind), []).append(operand)
        self._plans = [_plan(key[0], operands, state, rule) for key, operands in kinds.items()]
        work = [plan.prepare(options) for plan in self._plans]
        assert None not in work
        self._params = list(params)
        return work  # type: ignore[return-value]
