"""The base class of the optimizers: parameter groups, the table of points, steps and state_dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..errors import GeometryError, OptionError, StepError
from ..manifolds import Euclidean, Manifold, Rows
from ..manifolds.numerics import DTYPES, full_precision, tolerance
from ..manifolds.parameters.factors import Rest
from ..manifolds.parameters.lookup import FLATTENED, check_parts, check_types
from ..manifolds.parameters.placing import check_rows
from ..manifolds.parameters.rows import gather
from ..manifolds.parameters.shards import is_sharded
from .checkpoints import check_owners, merge, pack, restore
from .execution.dispatch import Group, Paths, paths
from .execution.points import PointSet, Table, passed_over, point_sets
from .execution.sharded import ShardedGroup
from .execution.sliced import SlicedGroup
from .groups import Marks, Settings, refuse_bare, sliced_table, tensor_geometry
from .options import COMMON, check_known, read_numbers
from .rest import KEY, rest_of
from .rules import Rule

__all__ = ["RiemannianOptimizer"]

GROSS = tolerance(torch.float16)
"""Defect above which a parameter is off its manifold, rather than rounded by a change of dtype."""
_SPLIT = (
    "ZeroRedundancyOptimizer splits groups like that, since it distributes parameters one by one: shard the model with "
    "fully_shard (FSDP2) instead"
)


class RiemannianOptimizer(torch.optim.Optimizer):
    """Base class of the optimizers: everything but the rule.

    A group may have ``"manifold"`` (default: flat space, every coordinate a point), ``"rows"`` (default: ``Rows()``),
    ``"joined"`` (tuples of its parameters that form joint points) and ``"names"``; `retract.param_groups` makes such groups.
    The optimizer stores these objects in a table and leaves strings in the group, so that ``state_dict()`` has plain values.

    Example:
        >>> import torch
        >>> from retract.optim import Coefficients, RiemannianOptimizer, Rule
        >>> class Descent(Rule):
        ...     def __call__(self, length, memory, options):
        ...         return Coefficients(ahead=-options["lr"])
        >>> class GradientDescent(RiemannianOptimizer):
        ...     rule = Descent()
        ...     def __init__(self, params, lr=0.1, **options):
        ...         super().__init__(params, {"lr": lr, **options})
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = GradientDescent([w])
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.detach()
        tensor([0.9000, 0.9000])
    """

    rule: Rule
    """The update rule, the same for all groups."""
    flat: Euclidean = Euclidean(0)
    """The manifold of groups without one; under ``Euclidean(2)`` their parameters are matrices."""
    _names_manifold = False
    """Whether any group or parameter has a manifold, which may be flat space."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._table: Table = {}
        self._names: dict[Tensor, str] = {}
        self._settings: list[Settings] = []
        self._groups: list[Group | ShardedGroup | SlicedGroup] = []
        self._known: list[dict[str, Any]] = []
        self._marks = Marks()
        super().__init__(params, {**defaults, **{name: option.default for name, option in COMMON.items()}, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; `param_group` is not written to.

        Raises:
            OptionError: an option outside its interval, or one that the group's manifold does not support.
            GeometryError: a parameter that does not fit the manifold, or is not on it.
            DeclarationError: a zero or non-finite row; a declared parameter in a group without a manifold.
            ValueError, TypeError: from torch, for empty, repeated or wrong parameters.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = dict(param_group)
        manifold, rows = group.pop("manifold", None), group.pop("rows", None)
        joined, names, slices = group.pop("joined", ()), group.pop("names", None), group.pop("slices", ())
        if isinstance(manifold, str) or isinstance(rows, str):
            raise OptionError(
                "manifold and rows of this group are strings, as in the param_groups of an optimizer; pass the Manifold and Rows"
            )
        if slices and (manifold is not None or rows is not None or joined):
            raise OptionError("a group with slices has their manifolds in them; leave out manifold, rows and joined")
        euclidean = group.pop(KEY, None)
        if euclidean is not None and not slices:
            raise OptionError(
                f"{KEY}={euclidean!r} in a group without slices: it has the options for what is left of parameters in slices. "
                "Set the options of this group"
            )
        before = len(self.param_groups)
        super().add_param_group(group)
        try:
            table = (
                sliced_table(group, names, slices) if slices else self._points_of(group, manifold, rows, joined, names)
            )
            index = {p: i for i, p in enumerate(group["params"])}
            sets = [*chain.from_iterable(table.values())]
            group["manifold"] = ", ".join(dict.fromkeys(repr(points.manifold) for points in sets))
            group["rows"] = ", ".join(dict.fromkeys(repr(points.rows) for points in sets if points.slices is None))
            group["joined"] = ", ".join("+".join(str(index[part]) for part in parts) for parts in joined)
            group["slices"] = ", ".join(points.placed(index) for points in sets if points.slices is not None)
            rest = [points for points in sets if isinstance(points.slices, Rest)]
            if group.get("lr", 0.0) is None:
                group["lr"] = self._default_lr([points for points in sets if points not in rest])
            if rest:
                check_known(euclidean or {}, self.defaults)
                wanted = {**self.defaults, **(euclidean or {})}
                if wanted.get("lr", 0.0) is None:
                    wanted["lr"] = self._default_lr(rest)
                group[KEY] = rest_of(group, wanted)
            settings = self._settings_of(sets)
            group.update(settings.valid(group))
            for points in sets:
                _check_values(points)
        except Exception:
            del self.param_groups[before:]
            raise
        settings.accept(group)
        self._settings.append(settings)
        self._table.update(table)
        self._names.update(zip(group["params"], names or group.get("param_names", ()), strict=False))
        self._marks.add(group["params"])
        curved = any(not isinstance(points.manifold, Euclidean) for points in sets)
        self._names_manifold = self._names_manifold or manifold is not None or curved

    def _default_lr(self, points: Sequence[PointSet]) -> float | None:
        """The learning rate of a group without one, of an optimizer without a default."""
        return None

    def _points_of(
        self, group: dict[str, Any], manifold: Manifold | None, rows: Rows | None, joined: Any, names: Any
    ) -> Table:
        params = group["params"]
        if len(params) != len(set(params)):
            raise OptionError("a parameter is twice in one group; pass tied parameters once")
        if not isinstance(names, list | tuple | None):
            raise OptionError(f"names={names!r} is not a list of the parameters' names")
        labels = names or group.get("param_names") or [f"parameter {i} of its group" for i in range(len(params))]
        if len(labels) != len(params):
            raise OptionError(f"names has {len(labels)} entries for {len(params)} parameters; {_SPLIT}")
        if manifold is None and (rows is not None or joined):
            raise OptionError(
                "rows and joined need a manifold, and this group has none; set the manifold, or leave them out"
            )
        label = dict(zip(params, labels, strict=True))
        leads = _joint_points(joined)
        if any(part not in label for parts in leads.values() for part in parts):
            raise OptionError(f"joined names a parameter that is not in the group's params; {_SPLIT}")
        joined_parts = {part for parts in leads.values() for part in parts[1:]}
        table: Table = {}
        for p in params:
            if p.dtype not in DTYPES and not passed_over(p):
                raise OptionError(
                    f"{label[p]} is {p.dtype}; the updates are defined for real floating-point parameters: float64, float32, "
                    "float16 and bfloat16. To keep it in the group without training it, call requires_grad_(False) on it"
                )
            if manifold is None:
                refuse_bare(label[p], p)
            if p in joined_parts:
                continue
            geometry, cut = (manifold, rows or Rows()) if manifold is not None else tensor_geometry(p, self.flat)
            if manifold is None and geometry == Euclidean(2) and p.ndim != 2:
                raise GeometryError(
                    f"{label[p]} of shape {tuple(p.shape)} is no matrix, and {type(self).__name__} steps matrices: give it to another "
                    "optimizer, or declare how it is cut into matrices, on Euclidean(2) with Rows"
                )
            points = PointSet(label[p], leads.get(p, (p,)), geometry, cut)
            check_types(label[p], geometry, cut)
            if not passed_over(p):
                check_parts(label[p], points.parts, geometry, cut)
            if getattr(p, "_fsdp_flattened", False) and not isinstance(geometry, Euclidean):
                raise OptionError(f"{label[p]} {FLATTENED}")
            table[p] = (points,)
        return table

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Gradients are checked for all parameters before the first of them moves, and are never written to.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The loss that `closure` returned, or None.

        Raises:
            GradientError: a sparse gradient, one that does not fit its parameter, a joint point of which only some parts
                have a gradient.
            StateError: a parameter that was reshaped or converted since its last step while its state was not; one that
                replaced another in a group.
            DeclarationError: a parameter that was declared after it was added.
            OptionError: a requested path that is not available; a closure that waits for the device while a CUDA graph is
                captured.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._evaluate(closure)
        self._check_settings()
        self._marks.check(self._table)
        for group in self.param_groups[len(self._groups) :]:
            self._groups.append(self._execution_of(group["params"]))
        known = len(self.state) == len(self._known) and all(map(is_, self.state.values(), self._known))
        with torch.no_grad(), full_precision():
            prepared = [
                work
                for execution, settings, group in zip(self._groups, self._settings, self.param_groups, strict=True)
                for work in execution.prepare(self._table, self.state, self.rule, settings.read(group), known)
            ]
            done = 0
            try:
                for work in prepared:
                    work()
                    done += 1
            except Exception as error:
                raise self._interrupted(done, error) from error
        if not known or len(self.state) != len(self._known):  # the first step creates state
            self._known = list(self.state.values())
        return loss

    def _execution_of(self, params: Sequence[Tensor]) -> Group | ShardedGroup | SlicedGroup:
        if any(points.slices is not None for p in params for points in self._table.get(p, ())):
            return SlicedGroup()
        return ShardedGroup() if any(map(is_sharded, params)) else Group()

    def paths(self) -> Paths:
        """The path of each parameter in the next step, and why: a tuple of `Path` that prints as a table.

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

    def _current_settings(self) -> list[Settings]:
        """The checked settings, one per group."""
        if len(self._settings) > len(self.param_groups):  # groups were removed
            self._settings, self._groups = [], []
        for group in self.param_groups[len(self._settings) :]:
            found = (self._table.get(p, ()) for p in group["params"])
            self._settings.append(self._settings_of(chain.from_iterable(found)))
        return self._settings

    def _settings_of(self, points: Iterable[PointSet]) -> Settings:
        trained = [point_set for point_set in points if not any(map(passed_over, point_set.parts))]
        return Settings(trained, self.rule, self.defaults)

    def _check_settings(self) -> None:
        """Check the changes in all groups since the last step, before the first of them moves."""
        settings, groups = self._settings, self.param_groups
        if len(settings) == len(groups) and all(map(Settings.unchanged, settings, groups)):
            return
        pairs = zip(self._current_settings(), groups, strict=True)
        changed = [(checked, group, checked.valid(group)) for checked, group in pairs if not checked.unchanged(group)]
        for checked, group, found in changed:
            group.update(found)
            checked.accept(group)

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        try:
            return closure()
        except RuntimeError as error:
            if "capturing" in str(error) and any(group["capturable"] for group in self.param_groups):
                raise OptionError(
                    "the closure waits for the device (item(), a print, a copy to the host), which the capture of a CUDA graph "
                    "does not allow; remove that from the closure, or step outside of the graph"
                ) from error
            raise

    def _interrupted(self, done: int, error: Exception) -> StepError:
        """The error for a step in which plan number `done` has failed; drops all plans."""
        names = [", ".join(points.name for points in plan.points) for group in self._groups for plan in group.plans]
        self._groups = []
        moved, still = (", ".join(part) or "none" for part in (names[:done], names[done + 1 :]))
        return StepError(
            f"a step failed between its writes ({type(error).__name__}: {error}). Moved: {moved}; "
            f"perhaps moved in part: {names[done]}; not moved: {still}. "
            "Restore model and optimizer from the last checkpoint before the next step"
        )

    def _gradients(self) -> Iterator[tuple[PointSet, list[Tensor]]]:
        """Every point set with gradients, and the gradients of its parts; raises `GradientError` like `step`."""
        for group in self.param_groups:
            for points in point_sets(group["params"], self._table):
                grads = points.gradients()
                if grads:
                    yield points, grads

    def __getstate__(self) -> dict[str, Any]:
        names = ("_table", "_names", "_marks", "_names_manifold", "rule")
        state = {name: self.__dict__[name] for name in names if name in self.__dict__}
        return {**super().__getstate__(), **state, "_settings": [], "_groups": [], "_known": []}

    def state_dict(self) -> dict[str, Any]:
        """State and groups as plain values and copies of tensors, which later steps do not change.

        NumPy's numbers become Python's, so that it loads under ``torch.load(weights_only=True)``. The names of parameters, if
        they are known, are saved under ``"names"``, and `load_state_dict` matches by them.

        Raises `StateError` for state of a parameter that was replaced by another.
        """
        check_owners(self)
        hook = self.register_state_dict_post_hook(lambda _, found: pack(self, found), prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`, also in the middle of a run; its tensors are copied.

        Parameters are matched by name where both sides have names, otherwise by order. A state_dict of torch.optim.SGD or Adam
        loads too, on Euclidean groups, and one of torch.optim.Muon in `Muon`; options that it does not have keep their values. Scalars per point are stored in
        float32 or better, whatever the parameter's dtype. Pre-hooks may adapt the state_dict: their result is checked and
        loaded.

        Raises `StateError` if it was saved with another geometry, rule, or other parameters, `OptionError` for options that
        a manifold does not support; nothing has changed then.
        """
        loading: list[dict[str, Any]] = []

        def check(_: Any, found: dict[str, Any]) -> dict[str, Any]:
            loading.append(merge(self, found))
            return loading[0]

        def finish(_: Any) -> None:
            restore(self, *loading)
            for settings, group in zip(self._current_settings(), self.param_groups, strict=True):
                settings.accept(group)

        # After the hooks that adapt a state_dict, and before those that read the result.
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
    """First part of a joint point → all its parts."""
    if isinstance(joined, list | tuple) and all(isinstance(parts, list | tuple) and parts for parts in joined):
        parts = [part for parts in joined for part in parts]
        if all(isinstance(part, Tensor) for part in parts) and len(set(parts)) == len(parts):
            return {parts[0]: tuple(parts) for parts in joined}
    raise OptionError(f"joined={joined!r} is not a list of tuples of parameters, each parameter in one tuple")


def _check_values(points: PointSet) -> None:
    """Raise `GeometryError` or `DeclarationError` for values that are not points of their manifold."""
    if isinstance(points.manifold, Euclidean) or any(p.is_meta or passed_over(p) for p in points.parts):
        return
    with torch.no_grad():
        x = gather(points.parts, points.layouts())
        check_rows(points.name, x, points.manifold)
        points.manifold.check_point(x, points.name, max(tolerance(points.parts[0].dtype), GROSS))
