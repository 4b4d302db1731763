"""Declarations of slices: parts in several modules, cut along any dimension."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import takewhile

from torch import nn

from ...errors import DeclarationError, GeometryError
from ..base import Manifold
from ..fixed_rank import FixedRank
from .factors import Factors, Grid, Part, covered
from .lookup import check_memory, find_owner, find_parameter
from .records import Declaration, entries

__all__ = ["check_grids", "sliced"]


def sliced(
    module: nn.Module,
    factors: Factors,
    manifold: Manifold,
    representative: str,
    found: bool,
    without: Collection[str],
) -> tuple[nn.Module, str, str, Declaration]:
    """The declaration of `factors` of parameters of `module`, checked, with the module that will own it, the path of that, and the name there.

    Raises as `declare.declare`.
    """
    params = {name: find_parameter(*find_owner(module, name), name) for name in factors.names}
    for name, p in params.items():
        check_memory(name, p)
    k = manifold.k if isinstance(manifold, FixedRank) else None
    given, factors = (
        factors,
        Factors(
            *(
                tuple(part.resolved(params[part.name].shape, k) for part in side)
                for side in (factors.left, factors.right)
            )
        ),
    )
    grids = factors.layouts([params[part.name] for part in factors.parts], manifold.event_ndim)
    if representative == "balanced" and not isinstance(manifold, FixedRank):
        raise DeclarationError(f"{factors}: representative='balanced' is for FixedRank, not for {manifold!r}")
    if bool(factors.right) != isinstance(manifold, FixedRank):
        raise GeometryError(
            f"{factors}: points with two factors, left and right, are those of FixedRank, not of {manifold!r}"
            if factors.right
            else f"{factors}: a point of {manifold!r} has two factors; pass Factors(left, right)"
        )
    if isinstance(manifold, FixedRank):
        n = sum(grid.height for grid in grids[: len(factors.left)])
        if manifold.n not in (None, n):
            raise GeometryError(f"{factors}: the left factor has {n} rows, and {manifold!r} says {manifold.n}")
        manifold = replace(manifold, n=n)
    check_grids(factors, manifold, grids)
    for p in params.values():
        covered(_of(factors, [name for name in factors.names if params[name] is p]), tuple(p.shape))
    path = _common_path(factors.names)
    local = factors.renamed(lambda name: name.removeprefix(path))
    given = given.renamed(lambda name: name.removeprefix(path))
    leaf = str(given)
    for entry in entries(module):
        if (entry.path, entry.leaf) == (path, leaf) or entry.name in without:
            continue
        taken = entry.declaration.factors
        for p, name in entry.named_parts:
            mine = _of(factors, [name for name in factors.names if params[name] is p])
            if mine and taken is None:
                raise DeclarationError(
                    f"{factors}: {entry.name} is declared as a whole, on {entry.declaration.manifold!r}; undeclare it first"
                )
            if mine and taken is not None:
                covered(mine + _of(taken, [name]), tuple(p.shape))
    return (
        module.get_submodule(path.rstrip(".")),
        path,
        leaf,
        Declaration(manifold, factors=local, given=given, found=found),
    )


def check_grids(factors: Factors, manifold: Manifold, grids: list[Grid]) -> None:
    """Raise `GeometryError` unless the slices of all parts are as many points, of one shape that `manifold` has."""
    counts = [grid.points for grid in grids]
    if len(set(counts)) > 1:
        raise GeometryError(
            f"{factors} has {counts} points: all parts need the same number; points=… of a Part says how many"
        )
    widths = [grid.event[1:] for grid in grids]
    if len(set(widths)) > 1:
        raise GeometryError(f"{factors} has {[grid.k for grid in grids]} columns: all parts need the same inner size")
    error = manifold.event_error((sum(grid.event[0] for grid in grids), *grids[0].event[1:]))
    if error:
        raise GeometryError(f"{factors}: {error}")


def _of(factors: Factors, names: Collection[str]) -> tuple[Part, ...]:
    """The parts of `factors` that are slices of the parameter with these `names`."""
    return tuple(part for part in factors.parts if part.name in names)


def _common_path(names: Collection[str]) -> str:
    """The path of the lowest module that owns all of the parameters, with a dot at its end."""
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{same[0]}." for same in takewhile(lambda step: len(set(step)) == 1, steps))
