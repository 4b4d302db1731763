"""Parameter groups: built from the declarations on a model, and checked whenever they or the declarations change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn

from ..errors import DeclarationError, OptionError
from ..manifolds import Euclidean, Manifold, Rows, from_geoopt
from ..manifolds.parameters.declare import walk
from ..manifolds.parameters.factors import Factors, Rest
from ..manifolds.parameters.records import changes, joined_geometries, marked
from .execution.dispatch import check_path
from .execution.operands import has_rows_of_matrices, matrix_of
from .execution.points import PointSet
from .execution.sharded import check_sharding
from .execution.sliced import check_slices
from .options import Options, check_names, check_point, check_together, read_by, read_numbers, valid
from .rest import KEY, check_rest
from .rules import Rule
from .shapes import check_shape, frame_error, has_coordinates

__all__ = ["Marks", "Settings", "param_groups", "refuse_bare", "tensor_geometry"]

_OF_POINTS = frozenset((*read_by("points"), KEY))
_FLAT = Euclidean(0), Rows()


def param_groups(
    model: nn.Module, *, manifold: dict[str, Any] | None = None, euclidean: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of `model` for the optimizers here: one per (manifold, rows), and one for the rest.

    A `geoopt.ManifoldParameter` goes to a group of its manifold, unless it is declared, too.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Linear(8, 4)
        >>> retract.declare(model, "weight", retract.manifolds.Sphere())
        >>> for group in retract.param_groups(model, manifold={"lr": 0.2}, euclidean={"weight_decay": 5e-4}):
        ...     print(group["name"], group["names"], group.get("lr"), group.get("weight_decay"))
        Sphere() ['weight'] 0.2 None
        euclidean ['bias'] None 0.0005

    Args:
        model: the network with its declarations.
        manifold: options for the groups on manifolds, such as ``{"lr": 0.2}``.
        euclidean: options for the group of the rest, such as ``{"weight_decay": 5e-4}``, and for what is left of parameters that
            are cut into slices.

    Returns:
        Groups for an optimizer: ``"params"``, ``"names"``, ``"name"``, and on manifolds ``"manifold"``, ``"rows"`` and
        ``"joined"``, or ``"slices"`` and ``"euclidean"``.

    Raises:
        DeclarationError: as `retract.declared`; `manifold` options for a model without declarations.
        GeometryError: a `geoopt.ManifoldParameter` whose manifold `from_geoopt` refuses.
    """
    groups: dict[tuple[Manifold, Rows], list[tuple[Sequence[str], Sequence[nn.Parameter]]]] = {}
    slices: list[tuple[Manifold, Factors]] = []
    sliced: dict[nn.Parameter, str] = {}
    for _, names, parts, declaration, factors in walk(model):
        if factors is None:
            groups.setdefault((declaration.manifold, declaration.rows), []).append((names, parts))
            continue
        first = {name: sliced.setdefault(part, name) for name, part in zip(names, parts, strict=True)}  # of tied names
        slices.append((declaration.manifold, factors.renamed(first.__getitem__)))
    taken = {id(part) for points in groups.values() for _, parts in points for part in parts} | {*map(id, sliced)}
    rest = {}
    for name, p in model.named_parameters():
        if id(p) not in taken and (key := tensor_geometry(p)) != _FLAT:
            groups.setdefault(key, []).append(((name,), (p,)))
        elif id(p) not in taken:
            rest[name] = p
    if manifold and not groups and not slices:
        raise DeclarationError(
            f"options {manifold} for parameters on a manifold, but the model declares none; call retract.declare first"
        )
    result = []
    for (on, rows), points in groups.items():
        result.append(
            {
                "params": [part for _, parts in points for part in parts],
                "names": [name for names, _ in points for name in names],
                "joined": [parts for _, parts in points if len(parts) > 1],
                "name": repr(on) if rows == Rows() else f"{on!r} {rows!r}",
                "manifold": on,
                "rows": rows,
                **(manifold or {}),
            }
        )
    if slices:
        params = {"params": [*sliced], "names": [*sliced.values()], "name": "slices", "slices": slices}
        result.append({**params, KEY: {**(euclidean or {})}, **(manifold or {})})
    if rest:
        result.append({"params": [*rest.values()], "names": [*rest], "name": "euclidean", **(euclidean or {})})
    return result


def tensor_geometry(p: Tensor, flat: Manifold = Euclidean(0)) -> tuple[Manifold, Rows]:
    """The geometry of an undeclared tensor: that of a geoopt.ManifoldParameter, otherwise `flat` space."""
    geoopt_manifold = getattr(p, "manifold", None)
    if geoopt_manifold is None or not any(cls.__module__.startswith("geoopt") for cls in type(p).__mro__):
        return flat, Rows()
    manifold = from_geoopt(geoopt_manifold)
    # In geoopt the last dimensions are the point.
    return manifold, Rows(dim=tuple(range(p.ndim - 1))) if manifold.event_ndim == 1 else Rows()


class Settings:
    """The names and values of the options of one group at the last check.

    All options are checked here, whether the constructor, `add_param_group`, ``load_state_dict`` or an assignment has set
    them. Values are compared by identity, which takes under a microsecond for an unchanged group. Only changed options are
    checked, and those that not every manifold supports against all points of the group.
    """

    def __init__(self, points: Iterable[PointSet], rule: Rule, defaults: Options) -> None:
        self._points = [*points]
        self._manifolds = {points.manifold: points for points in reversed(self._points)}
        self._rule, self._defaults = rule, defaults
        self._names: list[str] = []
        self._values: list[Any] = []
        self._tensors = False

    def unchanged(self, group: Options) -> bool:
        """Whether `group` has the names and values of the last check."""
        return [*group] == self._names and all(map(is_, group.values(), self._values))

    def valid(self, group: Options) -> dict[str, Any]:
        """The changed values of `group` in their normal form; writes nothing.

        Raises `OptionError` for an unknown or a missing key, for a value outside its interval or its choices, and for one
        that a manifold of the group does not support.
        """
        before = dict(zip(self._names, self._values, strict=True))
        if [*group] != self._names:
            check_names(group, self._defaults)
        changed = [name for name, value in group.items() if name not in before or before[name] is not value]
        found = {name: valid(name, group[name]) for name in changed if name != "params"}
        if found.keys() == {"lr"}:  # set by a scheduler at every step; nothing else depends on it
            return found
        for name in ("manifold", "rows", "joined", "slices"):
            if name in found and name in before and found[name] != before[name]:
                raise OptionError(
                    f"{name}={found[name]!r} in a running group, which was built with {before[name]!r}: the geometry of a "
                    "group is fixed when it is added. Build a new optimizer"
                )
        both = {**group, **found}
        check_together(both)
        check_rest(both, self._defaults)
        if not _OF_POINTS.isdisjoint(found):
            self._check_points(both, found)
        return found

    def accept(self, group: Options) -> None:
        """Record the values of `group` as checked."""
        self._names, self._values = [*group], [*group.values()]
        self._tensors = any(isinstance(value, Tensor) for value in (*self._values, *group.get("betas", ())))

    def read(self, group: Options) -> Options:
        """`group` with tensors read as numbers, by `options.read_numbers`."""
        return read_numbers(group) if self._tensors else group

    def _check_points(self, group: Options, found: Options) -> None:
        """Raise for options that a manifold of the group does not support: checked once per manifold, and for every point set
        where memory or sharding matter."""
        for manifold, points in self._manifolds.items():
            check_point(points.name, manifold, group)
            if self._rule.arrays and not has_coordinates(manifold):
                raise OptionError(
                    f"{type(self._rule).__name__} on {points.name}: it has a second moment per coordinate, and those of {manifold!r} are "
                    "not orthonormal; use second_moment='point'"
                )
            frame = frame_error(manifold) if self._rule.arrays else None
            if frame:
                raise OptionError(f"{type(self._rule).__name__} on {points.name}: {frame}")
        for points in self._points if group["shape"] is not None else ():
            if not isinstance(points.slices, Rest):
                check_shape(points.name, points.manifold, matrix_of(points), has_rows_of_matrices(points), group)
        if not {"differentiable", "foreach", "fused", "shape", "tangent", "motion", KEY}.isdisjoint(found):
            for points in self._points:
                check_sharding(points, group)
                check_slices(points, group)
                check_path(points, self._rule, group)


def refuse_bare(name: str, p: Tensor) -> None:
    """Raise `DeclarationError` if `p`, whose group has no manifold, was declared."""
    mark = marked(p)
    if mark is not None:
        raise DeclarationError(
            f"{name} was declared on {mark.geometry}, by the name {mark.name}, but its group has no manifold: it would train "
            "in flat space. Use the groups of retract.param_groups(model), or set the manifold of the group, which may be "
            "Euclidean(0); retract.undeclare removes a declaration"
        )


class Marks:
    """The marks of an optimizer's parameters when they were added."""

    def __init__(self) -> None:
        self._geometries: dict[Tensor, str] = {}
        self._changes = -1

    def __getstate__(self) -> dict[str, object]:
        return {"_geometries": self._geometries, "_changes": -1}  # another process has another counter

    def add(self, params: Iterable[Tensor]) -> None:
        """Store the marks of `params`."""
        self._geometries.update({p: mark.geometry for p in params if (mark := marked(p)) is not None})

    def check(self, table: Mapping[Tensor, Sequence[PointSet]]) -> None:
        """Raise `DeclarationError` for a parameter that has been declared since it was added, on another geometry than in `table`.

        While no declarations are made in the process, this compares two numbers.
        """
        now = changes()
        if now == self._changes:
            return
        present: dict[Tensor, tuple[str, list[str]]] = {}
        for points in chain.from_iterable(table.values()):
            for part, text in points.geometries():
                present.setdefault(part, (points.name, []))[1].append(text)
        for part, (name, geometries) in present.items():
            mark, before = marked(part), joined_geometries(geometries)
            known = {*geometries, self._geometries.get(part)}
            if mark is not None and mark.geometry not in known and not known.issuperset(mark.geometries):
                raise DeclarationError(
                    f"{name} was declared on {mark.geometry}, by the name {mark.name}, after it was added to this "
                    f"optimizer, which has it on {before}. Build a new optimizer from retract.param_groups(model)"
                )
        self._changes = now
