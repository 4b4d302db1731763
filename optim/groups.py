"""Parameter groups: made from the declarations on a model, and checked whenever they or the declarations have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any

from torch import Tensor, nn

from ..errors import DeclarationError, OptionError
from ..manifolds import Euclidean, Manifold, Rows, from_geoopt
from ..manifolds.parameters.declare import walk
from ..manifolds.parameters.records import changes, geometry, marked
from .execution.dispatch import check_path
from .execution.points import PointSet
from .execution.sharded import check_sharding
from .options import Options, check_names, check_point, check_together, read_by, read_numbers, valid
from .rules import Rule

__all__ = ["Marks", "Settings", "own_geometry", "param_groups", "refuse_bare"]

_OF_POINTS = frozenset(read_by("points"))

_FLAT = Euclidean(0), Rows()


def param_groups(
    model: nn.Module, *, manifold: dict[str, Any] | None = None, euclidean: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of `model` for our optimizers: one per (manifold, rows), and one for the rest.

    A `geoopt.ManifoldParameter` goes to a group of its manifold; what is declared of it goes before that.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Linear(8, 4)
        >>> retract.declare(model, "weight", retract.manifolds.Sphere())
        >>> for group in retract.param_groups(model, manifold={"lr": 0.2}, euclidean={"weight_decay": 5e-4}):
        ...     print(group["name"], group["names"], group.get("lr"), group.get("weight_decay"))
        Sphere() ['weight'] 0.2 None
        euclidean ['bias'] None 0.0005

    Args:
        model: the network, declarations and all.
        manifold: options for the groups on manifolds, such as ``{"lr": 0.2}``.
        euclidean: options for the group of the rest, such as ``{"weight_decay": 5e-4}``.

    Returns:
        Groups as an optimizer takes them: ``"params"``, ``"names"``, ``"name"``, and for those on a manifold ``"manifold"``,
        ``"rows"`` and ``"joined"``.

    Raises:
        DeclarationError: as `retract.declared`; `manifold` options on a model that declares nothing.
        GeometryError: a `geoopt.ManifoldParameter` whose manifold `from_geoopt` refuses.
    """
    groups: dict[tuple[Manifold, Rows], list[tuple[Sequence[str], Sequence[nn.Parameter]]]] = {}
    for names, parts, declaration in walk(model):
        groups.setdefault((declaration.manifold, declaration.rows), []).append((names, parts))
    taken = {id(part) for points in groups.values() for _, parts in points for part in parts}
    rest = {}
    for name, p in model.named_parameters():
        if id(p) not in taken and (its_own := own_geometry(p)) != _FLAT:
            groups.setdefault(its_own, []).append(((name,), (p,)))
        elif id(p) not in taken:
            rest[name] = p
    if manifold and not groups:
        raise DeclarationError(
            f"options {manifold} for parameters on a manifold, but the model declares none; call retract.declare first"
        )
    result = []
    for (its, rows), points in groups.items():
        result.append(
            {
                "params": [part for _, parts in points for part in parts],
                "names": [name for names, _ in points for name in names],
                "joined": [parts for _, parts in points if len(parts) > 1],
                "name": repr(its) if rows == Rows() else f"{its!r} {rows!r}",
                "manifold": its,
                "rows": rows,
                **(manifold or {}),
            }
        )
    if rest:
        result.append({"params": [*rest.values()], "names": [*rest], "name": "euclidean", **(euclidean or {})})
    return result


def own_geometry(p: Tensor) -> tuple[Manifold, Rows]:
    """What the tensor itself says: a geoopt.ManifoldParameter its manifold, any other flat space."""
    theirs = getattr(p, "manifold", None)
    if theirs is None or not any(cls.__module__.startswith("geoopt") for cls in type(p).__mro__):
        return _FLAT
    manifold = from_geoopt(theirs)
    # geoopt takes the last dimensions as the point.
    return manifold, Rows(dim=tuple(range(p.ndim - 1))) if manifold.event_ndim == 1 else Rows()


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
        self._tensors = False

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
        for name in ("manifold", "rows", "joined"):
            if name in found and name in before and found[name] != before[name]:
                raise OptionError(
                    f"{name}={found[name]!r} in a running group, which was built with {before[name]!r}: where points live is "
                    "said once, in words, and cannot be changed there. Build a new optimizer"
                )
        both = {**group, **found}
        check_together(both)
        if not _OF_POINTS.isdisjoint(found):
            self._ask_points(both, found)
        return found

    def keep(self, group: Options) -> None:
        """Take the values of `group` for checked."""
        self._names, self._values = [*group], [*group.values()]
        self._tensors = any(isinstance(value, Tensor) for value in (*self._values, *group.get("betas", ())))

    def numbers(self, group: Options) -> Options:
        """As `options.read_numbers`."""
        return read_numbers(group) if self._tensors else group

    def _ask_points(self, group: Options, found: Options) -> None:
        """Raise what a manifold of the group cannot honour: the first point set of each is asked for them all, and every
        one where the way it is stored has a say."""
        for manifold, points in self._manifolds.items():
            check_point(points.name, manifold, group)
        if not {"differentiable", "foreach", "fused"}.isdisjoint(found):
            for points in self._points:
                check_sharding(points, group)
                check_path(points, self._rule, group)


def refuse_bare(name: str, p: Tensor) -> None:
    """Raise `DeclarationError` if `p`, whose group does not say where it lives, was declared."""
    mark = marked(p)
    if mark is not None:
        raise DeclarationError(
            f"{name} was declared on {mark.geometry}, by the name {mark.name}, and its group does not say so: it would "
            "train in flat space. Take the groups of retract.param_groups(model), or name the manifold in the group, be it "
            "Euclidean(0); retract.undeclare takes a declaration back"
        )


class Marks:
    """The marks that an optimizer's parameters bore when they came to it."""

    def __init__(self) -> None:
        self._geometries: dict[Tensor, str] = {}
        self._changes = -1

    def __getstate__(self) -> dict[str, object]:
        return {"_geometries": self._geometries, "_changes": -1}  # another process counts anew

    def add(self, params: Iterable[Tensor]) -> None:
        """Remember what `params` say."""
        self._geometries.update({p: mark.geometry for p in params if (mark := marked(p)) is not None})

    def check(self, table: Mapping[Tensor, PointSet]) -> None:
        """Raise `DeclarationError` for a parameter of `table` that was declared since, and lives elsewhere there.

        As long as nothing is declared anywhere, this compares two numbers.
        """
        now = changes()
        if now == self._changes:
            return
        for points in table.values():
            its = geometry(points.manifold, points.rows, len(points.parts))
            for part in points.parts:
                mark = marked(part)
                if mark is not None and mark.geometry not in (its, self._geometries.get(part)):
                    raise DeclarationError(
                        f"{points.name} was declared on {mark.geometry}, by the name {mark.name}, after it came to this "
                        f"optimizer, which has it on {its}. Build the optimizer anew, with retract.param_groups(model)"
                    )
        self._changes = now
