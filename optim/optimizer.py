"""The `torch.optim.Optimizer` shell: parameter groups, the table of points, state_dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, StepError
from ..manifolds import Euclidean, Manifold, Rows
from ..manifolds.numerics import DTYPES, full_precision, tolerance
from ..manifolds.parameters.declare import FLATTENED, check_parts, check_types
from ..manifolds.parameters.placing import check_rows
from ..manifolds.parameters.rows import gather
from ..manifolds.parameters.shards import is_sharded
from .checkpoints import check_owners, merge, pack, restore
from .execution.dispatch import Group, Paths, paths
from .execution.points import PointSet, passed_over, point_sets
from .execution.sharded import ShardedGroup
from .groups import Marks, Settings, own_geometry, refuse_bare
from .options import COMMON, read_numbers
from .rules import Rule

__all__ = ["RiemannianOptimizer"]

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
    _names_manifold = False
    """Whether any group or parameter says where it lives, be it in flat space."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._table: dict[Tensor, PointSet] = {}
        self._names: dict[Tensor, str] = {}
        self._settings: list[Settings] = []
        self._groups: list[Group | ShardedGroup] = []
        self._known: list[dict[str, Any]] = []
        self._marks = Marks()
        super().__init__(params, {**defaults, **{name: option.default for name, option in COMMON.items()}, **defaults})

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
        before = len(self.param_groups)
        super().add_param_group(group)
        try:
            table = self._points_of(group, manifold, rows, joined, names)
            place = {p: index for index, p in enumerate(group["params"])}
            group["manifold"] = ", ".join(dict.fromkeys(repr(points.manifold) for points in table.values()))
            group["rows"] = ", ".join(dict.fromkeys(repr(points.rows) for points in table.values()))
            group["joined"] = ", ".join("+".join(str(place[part]) for part in parts) for parts in joined)
            if group.get("lr", 0.0) is None:
                group["lr"] = self._default_lr([*table.values()])
            settings = self._settings_of(table.values())
            group.update(settings.valid(group))
            for points in table.values():
                _check_values(points)
        except Exception:
            del self.param_groups[before:]
            raise
        settings.keep(group)
        self._settings.append(settings)
        self._table.update(table)
        self._names.update(zip(group["params"], names or group.get("param_names", ()), strict=False))
        self._marks.add(group["params"])
        curved = any(not isinstance(points.manifold, Euclidean) for points in table.values())
        self._names_manifold = self._names_manifold or manifold is not None or curved

    def _default_lr(self, points: Sequence[PointSet]) -> float | None:
        """The learning rate of a group that does not say one and of an optimizer that was built without."""
        return None

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
            if p.dtype not in DTYPES and not passed_over(p):
                raise OptionError(
                    f"{label[p]} is {p.dtype}; the updates are defined for real floating-point parameters: float64, float32, "
                    "float16 and bfloat16. One that is not trained is passed over: call requires_grad_(False) on it"
                )
            if manifold is None:
                refuse_bare(label[p], p)
            if p in followers:
                continue
            its, its_rows = (manifold, rows or Rows()) if manifold is not None else own_geometry(p)
            points = PointSet(label[p], leads.get(p, (p,)), its, its_rows)
            check_types(label[p], its, its_rows)
            if not passed_over(p):
                check_parts(label[p], points.parts, its, its_rows)
            if getattr(p, "_fsdp_flattened", False) and not isinstance(its, Euclidean):
                raise OptionError(f"{label[p]} {FLATTENED}")
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
        self._check_settings()
        self._marks.check(self._table)
        for group in self.param_groups[len(self._groups) :]:
            self._groups.append(ShardedGroup() if any(map(is_sharded, group["params"])) else Group())
        known = len(self.state) == len(self._known) and all(map(is_, self.state.values(), self._known))
        with torch.no_grad(), full_precision():
            prepared = [
                work
                for its, settings, group in zip(self._groups, self._settings, self.param_groups, strict=True)
                for work in its.prepare(self._table, self.state, self.rule, settings.numbers(group), known)
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

    def paths(self) -> Paths:
        """Which path each parameter takes in the next step, and why: a tuple of `Path` that prints as a table.

        Returns:
            One entry per parameter or set of joint parameters: `name`, `geometry`, `path` (``"fused"``, ``"foreach"``,
            ``"reference"``, or one of torch's) and `reason`.

        Example:
            >>> import retract, torch
            >>> w = torch.nn.Parameter(retract.manifolds.Stiefel().random_point(5, 2))
            >>> group = {"params": [w], "names": ["w"], "manifold": retract.manifolds.Stiefel()}
            >>> retract.optim.RiemannianSGD([group], lr=0.1).paths()
            parameter  on         path       why
            w          Stiefel()  reference  there is no row kernel for Stiefel(), only for PSI, Sphere, ProjectiveSpace and classes with a row_kernel
        """
        return Paths(
            path
            for group in self.param_groups
            for path in paths(group["params"], self._table, self.state, self.rule, read_numbers(group))
        )

    def settings(self) -> list[Settings]:
        """Those of every group, as they were last found right."""
        if len(self._settings) > len(self.param_groups):  # somebody has taken groups out
            self._settings, self._groups = [], []
        for group in self.param_groups[len(self._settings) :]:
            self._settings.append(self._settings_of(self._table[p] for p in group["params"] if p in self._table))
        return self._settings

    def _settings_of(self, points: Iterable[PointSet]) -> Settings:
        moving = [its for its in points if not any(map(passed_over, its.parts))]
        return Settings(moving, self.rule, self.defaults)

    def _check_settings(self) -> None:
        """Check what has changed in the groups since the last step, in all of them before the first of them moves."""
        kept, groups = self._settings, self.param_groups
        if len(kept) == len(groups) and all(map(Settings.hold, kept, groups)):
            return
        pairs = zip(self.settings(), groups, strict=True)
        changed = [(its, group, its.valid(group)) for its, group in pairs if not its.hold(group)]
        for its, group, found in changed:
            group.update(found)
            its.keep(group)

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

    def _gradients(self) -> Iterator[tuple[PointSet, list[Tensor]]]:
        """Every point set that has gradients, with those of its parts; raises as `step` does."""
        for group in self.param_groups:
            for points in point_sets(group["params"], self._table):
                grads = points.gradients()
                if grads:
                    yield points, grads

    def __getstate__(self) -> dict[str, Any]:
        own = {
            "_table": self._table,
            "_names": self._names,
            "_marks": self._marks,
            "_names_manifold": self._names_manifold,
        }
        return {**super().__getstate__(), **own, "_settings": [], "_groups": [], "_known": []}

    def state_dict(self) -> dict[str, Any]:
        """State and groups as plain values and tensors of their own: later steps do not change what was returned.

        Numbers of NumPy become Python's, so that it loads under ``torch.load(weights_only=True)``. Where the parameters of a
        group have names, they stand under ``"names"``, and `load_state_dict` matches by them.

        Raises `StateError` for state of a parameter that was replaced by another.
        """
        check_owners(self)
        hook = self.register_state_dict_post_hook(lambda _, found: pack(self, found), prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, also in the middle of a run; its tensors are copied.

        Parameters are matched by name where both sides have names, whatever their order, else by their places. A
        state_dict of torch.optim.SGD or Adam is taken too, on Euclidean groups: what it does not say stays as
        it is here. Numbers per point are kept in float32 or better whatever the parameter's dtype. Hooks are called as
        torch calls them: what they make of the state_dict is what is checked and loaded.

        Raises `StateError` if it was saved with another geometry, rule, or other parameters, `OptionError` for options that
        cannot be honoured; then nothing has changed.
        """
        loading: list[dict[str, Any]] = []

        def check(_: Any, found: dict[str, Any]) -> dict[str, Any]:
            loading.append(merge(self, found))
            return loading[0]

        def finish(_: Any) -> None:
            restore(self, *loading)
            for its, group in zip(self.settings(), self.param_groups, strict=True):
                its.keep(group)

        # Next to torch's own work: after the hooks that adapt a state_dict, before those that look at the result.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(finish, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()


def _joint_points(joined: Any) -> dict[Tensor, tuple[Tensor, ...]]:
    """First part → parts."""
    if isinstance(joined, list | tuple) and all(isinstance(parts, list | tuple) and parts for parts in joined):
        parts = [part for parts in joined for part in parts]
        if all(isinstance(part, Tensor) for part in parts) and len(set(parts)) == len(parts):
            return {parts[0]: tuple(parts) for parts in joined}
    raise OptionError(f"joined={joined!r} is not a list of tuples of parameters, each of them in one joint point")


def _check_values(points: PointSet) -> None:
    """Raise for values that are no points of their manifold."""
    if isinstance(points.manifold, Euclidean) or any(p.is_meta or passed_over(p) for p in points.parts):
        return
    with torch.no_grad():
        x = gather(points.parts, points.layouts())
        check_rows(points.name, x, points.manifold)
        points.manifold.check_point(x, points.name, max(tolerance(points.parts[0].dtype), GROSS))
