"""The `torch.optim.Optimizer` shell: parameter groups, the table of points, state_dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..manifolds import Euclidean, Manifold, Rows
from ..manifolds.declare import FLATTENED, check_parts, check_types
from ..manifolds.errors import OptionError, StateError, StepError
from ..manifolds.numerics import DTYPES, full_precision, tolerance
from ..manifolds.placing import check_rows
from ..manifolds.rows import gather
from ..manifolds.shards import is_sharded
from .execute import Group, check_path
from .groups import own_geometry
from .marks import Marks, refuse_bare
from .options import COMMON, FOREIGN, check_group, check_names, check_point, read_numbers
from .points import PointSet, point_sets
from .rules import Adam, Momentum, Rule
from .sharded import ShardedGroup, check_sharding

__all__ = ["RiemannianAdam", "RiemannianOptimizer", "RiemannianSGD"]

_FLAT = "Euclidean(event_ndim=0)"
GROSS = tolerance(torch.float16)
"""Defect at which a parameter counts as not put on its manifold at all, rather than rounded by a change of dtype."""
_DEALT_OUT = (
    "ZeroRedundancyOptimizer, which deals parameters out one by one, tears groups apart like that: shard the model with "
    "fully_shard (FSDP2) instead"
)


class RiemannianOptimizer(torch.optim.Optimizer):
    """Base of the optimizers: everything but the rule.

    A group may say ``"manifold"`` (default: flat space, every coordinate a point), ``"rows"`` (default:
    ``Rows()``), ``"joined"`` (tuples of its parameters that form joint points) and ``"names"``;
    `retract.param_groups` writes such groups. The objects go into a table of the optimizer's own, and the
    group keeps readable strings, so that ``state_dict()`` holds plain values only.
    """

    rule: Rule
    """What a step is made of the gradient; the same for all groups."""
    names_manifold = False
    """Whether any group or parameter says where it lives, be it in flat space."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._table: dict[Tensor, PointSet] = {}
        self._groups: list[Group | ShardedGroup] = []
        self._known: list[dict[str, Any]] = []
        self._marks = Marks()
        super().__init__(params, {**defaults, **COMMON, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the dict that is passed in stays as it is.

        Raises:
            OptionError: an option outside its interval, or one that the group's manifold cannot honour.
            GeometryError: a parameter that does not fit the manifold, or lies off it.
            DeclarationError: a zero or non-finite row; a declared parameter in a group that does not say where it lives.
            ValueError, TypeError: what torch raises for empty, repeated or wrong parameters.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = dict(param_group)
        manifold, rows = group.pop("manifold", None), group.pop("rows", None)
        joined, names = group.pop("joined", ()), group.pop("names", None)
        if isinstance(manifold, str) or isinstance(rows, str):
            raise OptionError(
                "this group describes its geometry in words, as a group of an optimizer does; pass the Manifold and Rows"
            )
        check_names(group, self.defaults)
        check_group({**self.defaults, **{key: value for key, value in group.items() if key != "params"}})
        before = len(self.param_groups)
        super().add_param_group(group)
        try:
            table = self._points_of(group, manifold, rows, joined, names)
        except Exception:
            del self.param_groups[before:]
            raise
        self._table.update(table)
        self._marks.add(group["params"])
        curved = any(not isinstance(points.manifold, Euclidean) for points in table.values())
        self.names_manifold = self.names_manifold or manifold is not None or curved
        place = {p: index for index, p in enumerate(group["params"])}
        group["manifold"] = ", ".join(dict.fromkeys(repr(points.manifold) for points in table.values()))
        group["rows"] = ", ".join(dict.fromkeys(repr(points.rows) for points in table.values()))
        group["joined"] = ", ".join("+".join(str(place[part]) for part in parts) for parts in joined)

    def _points_of(
        self, group: dict[str, Any], manifold: Manifold | None, rows: Rows | None, joined: Any, names: Any
    ) -> dict[Tensor, PointSet]:
        params = group["params"]
        if len(params) != len(set(params)):
            raise OptionError("a parameter stands twice in one group; tied parameters go in once")
        if not isinstance(names, list | tuple | None):
            raise OptionError(f"names={names!r} is not a list of the parameters' names")
        labels = names or group.get("param_names") or [f"parameter {i} of its group" for i in range(len(params))]
        if len(labels) != len(params):
            raise OptionError(f"names has {len(labels)} entries for {len(params)} parameters; {_DEALT_OUT}")
        if manifold is None and (rows is not None or joined):
            raise OptionError(
                "rows and joined say how a group lies on a manifold; name the manifold, or leave them out"
            )
        label = dict(zip(params, labels, strict=True))
        leads = _joint_points(joined)
        if any(part not in label for parts in leads.values() for part in parts):
            raise OptionError(f"joined names a parameter that is not in the group's params; {_DEALT_OUT}")
        followers = {part for parts in leads.values() for part in parts[1:]}
        table = {}
        for p in params:
            if p.dtype not in DTYPES:
                raise OptionError(
                    f"{label[p]} is {p.dtype}; the updates are defined for real floating-point parameters: float64, float32, "
                    "float16 and bfloat16"
                )
            if manifold is None:
                refuse_bare(label[p], p)
            if p in followers:
                continue
            its, its_rows = (manifold, rows or Rows()) if manifold is not None else own_geometry(p)
            points = PointSet(label[p], leads.get(p, (p,)), its, its_rows)
            check_types(label[p], its, its_rows)
            check_parts(label[p], points.parts, its, its_rows)
            check_point(label[p], its, group)
            if getattr(p, "_fsdp_flattened", False) and not isinstance(its, Euclidean):
                raise OptionError(f"{label[p]} {FLATTENED}")
            check_sharding(points, group)
            check_path(points, self.rule, group)
            if not p.is_meta and not isinstance(its, Euclidean):
                with torch.no_grad():
                    x = gather(points.parts, points.layouts())
                    check_rows(label[p], x, its)
                    its.check_point(x, label[p], max(tolerance(p.dtype), GROSS))
            table[p] = points
        return table

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        `closure`, if given, re-evaluates the model and returns the loss, which is returned. Gradients are
        checked for all parameters before the first of them moves, and are never written to.

        Raises:
            GradientError: a sparse gradient, one that does not fit its parameter, a joint point of which only some
                parts have one.
            StateError: a parameter that was reshaped or converted since its last step, and its state was not; one that
                took the place of another in a group.
            DeclarationError: a parameter that was declared after it came to the optimizer.
            OptionError: a path that was asked for and is not there; a closure that waits for the device while a CUDA
                graph is captured.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._evaluate(closure)
        self._marks.check(self._table)
        for group in self.param_groups[len(self._groups) :]:
            self._groups.append(ShardedGroup() if any(map(is_sharded, group["params"])) else Group())
        known = len(self.state) == len(self._known) and all(map(is_, self.state.values(), self._known))
        with torch.no_grad(), full_precision():
            prepared = [
                work
                for its, group in zip(self._groups, self.param_groups, strict=True)
                for work in its.prepare(self._table, self.state, self.rule, read_numbers(group), known)
            ]
            done = 0
            try:
                for work in prepared:
                    work()
                    done += 1
            except Exception as error:
                raise self._broken_off(done, error) from error
        if not known or len(self.state) != len(self._known):  # the first step finds no state, and makes it
            self._known = list(self.state.values())
        return loss

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        try:
            return closure()
        except RuntimeError as error:
            if "capturing" in str(error) and any(group["capturable"] for group in self.param_groups):
                raise OptionError(
                    "the closure waits for the device (item(), a print, a copy to the host), which the capture of a CUDA graph "
                    "does not allow; take that out of the closure, or step outside of the graph"
                ) from error
            raise

    def _broken_off(self, done: int, error: Exception) -> StepError:
        """What to say of a step in which the plan number `done` has failed; the next step plans afresh."""
        names = [", ".join(points.name for points in plan.points) for its in self._groups for plan in its.plans]
        self._groups = []
        moved, still = (", ".join(some) or "none" for some in (names[:done], names[done + 1 :]))
        return StepError(
            f"a step broke off between its writes ({type(error).__name__}: {error}). Moved: {moved}; "
            f"moved in part, perhaps: {names[done]}; not moved: {still}. "
            "Restore model and optimizer from the last checkpoint before the next step"
        )

    def gradients(self) -> Iterator[tuple[PointSet, list[Tensor]]]:
        """Every point set that has gradients, with those of its parts; raises as `step` does."""
        for group in self.param_groups:
            for points in point_sets(group["params"], self._table):
                grads = points.gradients()
                if grads:
                    yield points, grads

    def __getstate__(self) -> dict[str, Any]:
        own = {"_table": self._table, "names_manifold": self.names_manifold, "_groups": [], "_known": []}
        own["_marks"] = self._marks
        return {**super().__getstate__(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, also in the middle of a run.

        A state_dict of torch.optim.SGD or Adam is taken too, on Euclidean groups: what it does not say stays as
        it is here. Numbers per point stay in float32 or better whatever the parameter's dtype. Hooks are called as
        torch calls them: what they make of the state_dict is what is checked and loaded.

        Raises `StateError` if it was saved with another geometry or rule, `OptionError` for options that cannot
        be honoured; then nothing has changed.
        """
        loading: list[dict[str, Any]] = []

        def check(_: Any, found: dict[str, Any]) -> dict[str, Any]:
            loading.append({**found, "param_groups": self._merged(found["param_groups"])})
            return loading[0]

        def restore(_: Any) -> None:
            self._restore_numbers(*loading)

        # Next to torch's own work: after the hooks that adapt a state_dict, before those that look at the result.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _merged(self, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups of a state_dict, checked, with what they do not say as it is here."""
        mine = self.param_groups
        if len(mine) != len(saved):
            raise StateError(f"the state_dict has {len(saved)} groups, this optimizer {len(mine)}")
        merged = []
        for group, its in zip(mine, saved, strict=True):
            for key, default in (("manifold", _FLAT), ("rows", repr(Rows())), ("joined", "")):
                if its.get(key, default) != group[key]:
                    raise StateError(
                        f"the state_dict was saved with {key} {its.get(key, default)!r}, this group has {group[key]!r}: "
                        "its state means something else. Build the optimizer with the same declarations, or start afresh"
                    )
            if not self.rule.options <= set(its) or its.get("amsgrad"):
                raise StateError(
                    f"the state_dict is of another rule: {type(self).__name__} needs {', '.join(sorted(self.rule.options))}"
                )
            kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            both = {**kept, **{key: value for key, value in its.items() if key in kept or key not in FOREIGN}}
            check_group(both)
            merged.append(both)
        return merged

    def _restore_numbers(self, state_dict: dict[str, Any]) -> None:
        """Numbers per point as they were saved: torch casts all state to the parameter's dtype, which would round them to
        half precision."""
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [(group, p) for group in self.param_groups for p in group["params"]]
        for key, (group, p) in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if name in ("radius", *self.rule.scalars) and isinstance(value, Tensor):
                    self.state[p][name] = value.detach().to(device=p.device, copy=True)
                elif name == "step" and not isinstance(value, Tensor):  # as torch had it once
                    place = p.device if group["capturable"] else None
                    self.state[p][name] = torch.tensor(float(value), dtype=torch.float32, device=place)


def _joint_points(joined: Any) -> dict[Tensor, tuple[Tensor, ...]]:
    """First part → parts."""
    if isinstance(joined, list | tuple) and all(isinstance(parts, list | tuple) and parts for parts in joined):
        parts = [part for parts in joined for part in parts]
        if all(isinstance(part, Tensor) for part in parts) and len(set(parts)) == len(parts):
            return {parts[0]: tuple(parts) for parts in joined}
    raise OptionError(f"joined={joined!r} is not a list of tuples of parameters, each of them in one joint point")


class RiemannianSGD(RiemannianOptimizer):
    """Stochastic gradient descent with momentum on any manifold; on Euclidean groups `torch.optim.SGD`.

    Args:
        params: parameters, groups, or ``retract.param_groups(model)``.
        lr: learning rate η, a number or a one-element tensor.
        momentum: ρ in [0, 1).
        dampening: τ, as in torch.
        weight_decay: L2 factor, on Euclidean groups only; others refuse it.
        nesterov: look ahead along the buffer, as in torch.
        momentum_form: ``"heavy_ball"`` (torch: η outside the buffer) or ``"velocity"`` (η inside).
        motion: ``"retract"`` or ``"exp"``.
        transport: how the buffer is carried: ``"manifold"`` (the manifold's transport after a retraction,
            parallel transport after an exponential), ``"project"``, ``"parallel"`` or ``"none"``.
        max_grad_norm: largest length of a point's gradient in the metric, None for no clipping.
        orthogonality: α of the penalty between the rows of a tensor (Cho & Lee 2017), for unit directions.
        radius: on scaling quotients, ``"hold"`` keeps every row at the norm of its first step, ``"free"`` lets it
            grow and brings it back by powers of two.
        maximize, capturable, differentiable: as in torch.
        foreach, fused, compile: fast paths; an explicit True that cannot be honoured raises.

    `max_grad_norm`, `orthogonality`, `motion`, `transport` and `radius` have no meaning on Euclidean groups and are
    not applied there. Every option can be set per group.

    Raises `OptionError` and `GeometryError` as `add_param_group` does.
    """

    rule = Momentum()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        momentum_form: str = "heavy_ball",
        motion: str = "retract",
        transport: str = "manifold",
        max_grad_norm: float | None = None,
        orthogonality: float = 0.0,
        radius: str = "hold",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, defaults)


class RiemannianAdam(RiemannianOptimizer):
    """Adam on any manifold, with one second moment per point; on ``Euclidean(0)`` `torch.optim.Adam`.

    Args:
        betas: decay of the first and the second moment, each in [0, 1).
        eps: ε ≥ 0.
        eps_form: ``"outside"`` (√v̂ + ε, torch) or ``"inside"`` (√(v + ε), Adam-G).

    All other options are those of `RiemannianSGD`.

    Raises `OptionError` and `GeometryError` as `add_param_group` does.
    """

    rule = Adam()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_form: str = "outside",
        motion: str = "retract",
        transport: str = "manifold",
        max_grad_norm: float | None = None,
        orthogonality: float = 0.0,
        radius: str = "hold",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, defaults)
