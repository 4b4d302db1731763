"""The base class of the optimizers: parameter groups, the table of points, steps and state_dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, StepError
from ..manifolds import Euclidean
from ..manifolds.numerics import full_precision
from ..manifolds.parameters.factors import Rest
from ..manifolds.parameters.shards import is_sharded
from .checkpoints import check_owners, merge, pack, restore
from .execution.dispatch import Group, Paths, paths
from .execution.points import PointSet, Table, passed_over, point_sets
from .execution.sharded import ShardedGroup
from .execution.sliced import SlicedGroup
from .groups import Marks, Settings
from .options import COMMON, check_known, read_numbers
from .rest import KEY, rest_of
from .rules import Rule
from .tables import check_values, described, table_of, taken

__all__ = ["RiemannianOptimizer"]


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
        group, geometry = taken(param_group)
        euclidean = group.pop(KEY, None)
        if euclidean is not None and not geometry.slices:
            raise OptionError(
                f"{KEY}={euclidean!r} in a group without slices: it has the options for what is left of parameters in slices. "
                "Set the options of this group"
            )
        before = len(self.param_groups)
        super().add_param_group(group)
        try:
            table = table_of(group, geometry, self.flat, type(self).__name__)
            sets = [*chain.from_iterable(table.values())]
            group.update(described(group["params"], sets, geometry))
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
                check_values(points)
        except Exception:
            del self.param_groups[before:]
            raise
        settings.accept(group)
        self._settings.append(settings)
        self._table.update(table)
        self._names.update(zip(group["params"], geometry.names or group.get("param_names", ()), strict=False))
        self._marks.add(group["params"])
        curved = any(not isinstance(points.manifold, Euclidean) for points in sets)
        self._names_manifold = self._names_manifold or geometry.manifold is not None or curved

    def _default_lr(self, points: Sequence[PointSet]) -> float | None:
        """The learning rate of a group without one, of an optimizer without a default."""
        return None

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
            w          Stiefel()  reference  there is no row kernel for Stiefel(), only for PSI, Sphere, ProjectiveSpace, PoincareBall, Lorentz and classes with a row_kernel
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
