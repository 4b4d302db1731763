"""From the entry of a parameter group to its points, with all checks; shared by all optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import GeometryError, OptionError
from ..manifolds import Euclidean, Manifold, Rows
from ..manifolds.numerics import DTYPES, tolerance
from ..manifolds.parameters.factors import Factors, Part, Rest, covered
from ..manifolds.parameters.lookup import FLATTENED, check_parts, check_types
from ..manifolds.parameters.placing import check_rows
from ..manifolds.parameters.rows import gather
from ..manifolds.parameters.slicing import check_grids
from .execution.points import PointSet, Table, passed_over
from .groups import refuse_bare, tensor_geometry
from .options import Options

__all__ = ["Geometry", "check_values", "described", "table_of", "taken"]

GROSS = tolerance(torch.float16)
"""Defect above which a parameter is off its manifold, rather than rounded by a change of dtype."""
_SPLIT = (
    "ZeroRedundancyOptimizer splits groups like that, since it distributes parameters one by one: shard the model with "
    "fully_shard (FSDP2) instead"
)


class Geometry(NamedTuple):
    """The keys of a group that say which points its parameters hold."""

    manifold: Manifold | None
    rows: Rows | None
    joined: Any
    names: Any
    slices: Any


def taken(param_group: Mapping[str, Any]) -> tuple[dict[str, Any], Geometry]:
    """A copy of `param_group` without its geometry, and that. Raises `OptionError` for keys that do not go together."""
    group = dict(param_group)
    manifold, rows = group.pop("manifold", None), group.pop("rows", None)
    joined, names, slices = group.pop("joined", ()), group.pop("names", None), group.pop("slices", ())
    if isinstance(manifold, str) or isinstance(rows, str):
        raise OptionError(
            "manifold and rows of this group are strings, as in the param_groups of an optimizer; pass the Manifold and Rows"
        )
    if slices and (manifold is not None or rows is not None or joined):
        raise OptionError("a group with slices has their manifolds in them; leave out manifold, rows and joined")
    return group, Geometry(manifold, rows, joined, names, slices)


def table_of(group: Mapping[str, Any], geometry: Geometry, flat: Euclidean, owner: str) -> Table:
    """The points of a group's parameters, on `flat` space if it has no manifold; `owner` is the optimizer, for messages.

    Raises `OptionError`, `GeometryError` or `DeclarationError` for parameters that do not fit.
    """
    if geometry.slices:
        return _sliced(group, geometry.names, geometry.slices)
    return _whole(group, *geometry[:4], flat, owner)


def described(params: Sequence[Tensor], sets: Sequence[PointSet], geometry: Geometry) -> dict[str, str]:
    """The geometry of a group as plain values, for `state_dict`."""
    index = {p: i for i, p in enumerate(params)}
    return {
        "manifold": ", ".join(dict.fromkeys(repr(points.manifold) for points in sets)),
        "rows": ", ".join(dict.fromkeys(repr(points.rows) for points in sets if points.slices is None)),
        "joined": ", ".join("+".join(str(index[part]) for part in parts) for parts in geometry.joined),
        "slices": ", ".join(points.placed(index) for points in sets if points.slices is not None),
    }


def _sliced(group: Options, names: Sequence[str] | None, slices: Sequence[tuple[Manifold, Factors]]) -> Table:
    """The point sets of a group with `slices`, pairs of a manifold and slices of its parameters by their `names`; what is left
    of a parameter is flat.

    Raises `OptionError` for other values, `GeometryError` for slices with entries in common.
    """
    named = dict(zip(names or (), group["params"], strict=False))
    missing = {name for _, factors in slices for name in factors.names} - set(named)
    if missing:
        raise OptionError(
            f"slices of {', '.join(sorted(missing))}, which are not among the names of the group: {names}"
        )
    found: dict[Tensor, list[PointSet]] = {}
    parts: dict[Tensor, list[Part]] = {}
    for manifold, factors in slices:
        tensors = tuple(named[part.name] for part in factors.parts)
        check_types(str(factors), manifold, Rows())
        check_grids(factors, manifold, factors.layouts(tensors, manifold.event_ndim))
        kinds = {(p.dtype, p.device) for p in tensors}
        if len(kinds) > 1:
            raise OptionError(
                f"{factors} has parts of {sorted(map(str, kinds))}; convert its parameters to one dtype, on one device"
            )
        for tensor, part in zip(tensors, factors.parts, strict=True):
            parts.setdefault(tensor, []).append(part)
        led = found.setdefault(tensors[0], [])
        led.append(PointSet(str(factors), tensors, manifold, slices=factors, suffix=f".{len(led)}"))
    for name, p in named.items():
        mine = tuple(parts.get(p, ()))
        if not covered(mine, tuple(p.shape)).all():
            label = f"the rest of {name}" if mine else name
            led = found.setdefault(p, [])
            led.append(PointSet(label, (p,), Euclidean(0), slices=Rest(mine), suffix=f".{len(led)}"))
    return {p: tuple(sets) for p, sets in found.items()}


def _whole(
    group: Mapping[str, Any],
    manifold: Manifold | None,
    rows: Rows | None,
    joined: Any,
    names: Any,
    flat: Euclidean,
    owner: str,
) -> Table:
    """The points of a group without slices."""
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
        geometry, cut = (manifold, rows or Rows()) if manifold is not None else tensor_geometry(p, flat)
        if manifold is None and geometry == Euclidean(2) and p.ndim != 2:
            raise GeometryError(
                f"{label[p]} of shape {tuple(p.shape)} is no matrix, and {owner} steps matrices: give it to another "
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


def _joint_points(joined: Any) -> dict[Tensor, tuple[Tensor, ...]]:
    """First part of a joint point → all its parts."""
    if isinstance(joined, list | tuple) and all(isinstance(parts, list | tuple) and parts for parts in joined):
        parts = [part for parts in joined for part in parts]
        if all(isinstance(part, Tensor) for part in parts) and len(set(parts)) == len(parts):
            return {parts[0]: tuple(parts) for parts in joined}
    raise OptionError(f"joined={joined!r} is not a list of tuples of parameters, each parameter in one tuple")


def check_values(points: PointSet) -> None:
    """Raise `GeometryError` or `DeclarationError` for values that are not points of their manifold."""
    if isinstance(points.manifold, Euclidean) or any(p.is_meta or passed_over(p) for p in points.parts):
        return
    with torch.no_grad():
        x = gather(points.parts, points.layouts())
        check_rows(points.name, x, points.manifold)
        points.manifold.check_point(x, points.name, max(tolerance(points.parts[0].dtype), GROSS))
