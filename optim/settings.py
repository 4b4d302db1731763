"""`Settings`: the options of a parameter group as they were last found right, so that a step checks what has changed."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

from ..errors import OptionError
from .execution.dispatch import check_path
from .execution.points import PointSet
from .execution.sharded import check_sharding
from .options import OF_POINTS, Options, check_names, check_point, check_together, valid
from .rules import Rule

__all__ = ["Settings"]

_GEOMETRY = ("manifold", "rows", "joined")


class Settings:
    """The names and values of one group when they were last checked.

    Whatever sets an option, the constructor, `add_param_group`, ``load_state_dict`` or an assignment to the running group,
    it is checked here, by one rule. Values are compared by identity, under a microsecond for a group that nobody has touched; a number
    that a scheduler has set is checked alone, and the points of the group are asked only where an option has changed that
    not every manifold can honour.
    """

    def __init__(self, points: Iterable[PointSet], rule: Rule, defaults: Options) -> None:
        self._points = [*points]
        self._manifolds = {points.manifold: points for points in reversed(self._points)}
        self._rule, self._defaults = rule, defaults
        self._names: list[str] = []
        self._values: list[Any] = []

    def hold(self, group: Options) -> bool:
        """Whether `group` is as it was."""
        return [*group] == self._names and all(map(is_, group.values(), self._values))

    def valid(self, group: Options) -> dict[str, Any]:
        """The values of `group` that have changed, as they are to be kept.

        Raises `OptionError` for an unknown or a missing key, for a value outside its interval or its choices, and for one
        that a manifold of the group cannot honour. Writes nothing.
        """
        before = dict(zip(self._names, self._values, strict=True))
        if [*group] != self._names:
            check_names(group, self._defaults)
        changed = [name for name, value in group.items() if name not in before or before[name] is not value]
        found = {name: valid(name, group[name]) for name in changed if name != "params"}
        if found.keys() == {"lr"}:  # as a scheduler leaves it, at every step; nothing else depends on it
            return found
        for name in _GEOMETRY:
            if name in found and name in before and found[name] != before[name]:
                raise OptionError(
                    f"{name}={found[name]!r} in a running group, which was built with {before[name]!r}: where points live is "
                    "said once, in words, and cannot be changed there. Build a new optimizer"
                )
        both = {**group, **found}
        check_together(both, found)
        if not OF_POINTS.isdisjoint(found):
            self._ask_points(both, found)
        return found

    def keep(self, group: Options) -> None:
        """Take the values of `group` for checked."""
        self._names, self._values = [*group], [*group.values()]

    def _ask_points(self, group: Options, found: Options) -> None:
        """Raise what a manifold of the group cannot honour: the first point set of each is asked for them all, and every
        one where the way it is stored has a say."""
        for manifold, points in self._manifolds.items():
            check_point(points.name, manifold, group)
        if not {"differentiable", "foreach", "fused"}.isdisjoint(found):
            for points in self._points:
                check_sharding(points, group)
                check_path(points, self._rule, group)
