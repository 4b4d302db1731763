"""From declarations on a model to parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import DeclarationError
from ..manifolds import Euclidean, Manifold, Rows, from_geoopt
from ..manifolds.parameters.declare import walk

__all__ = ["own_geometry", "param_groups"]

_FLAT = Euclidean(0), Rows()


def param_groups(
    model: nn.Module, *, manifold: dict[str, Any] | None = None, euclidean: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of `model` for our optimizers: one per (manifold, rows), and one for the rest.

    A `geoopt.ManifoldParameter` goes to a group of its manifold; what is declared of it goes before that.

    Args:
        model: the network, declarations and all.
        manifold: options for the groups on manifolds, such as ``{"lr": 0.2}``.
        euclidean: options for the group of the rest, such as ``{"weight_decay": 5e-4}``.

    Raises `DeclarationError` as `retract.manifolds.declare.walk` does, and for `manifold` options on a model
    that declares nothing; `GeometryError` for a `geoopt.ManifoldParameter` whose manifold `from_geoopt` refuses.
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
