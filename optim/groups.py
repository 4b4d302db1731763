"""From declarations on a model to parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..manifolds import Manifold, Rows
from ..manifolds.declare import Declared, walk
from ..manifolds.errors import DeclarationError

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module, *, manifold: dict[str, Any] | None = None, euclidean: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of `model` for our optimizers: one per (manifold, rows), and one for the rest.

    Args:
        model: the network, declarations and all.
        manifold: options for the groups on manifolds, such as ``{"lr": 0.2}``.
        euclidean: options for the group of the rest, such as ``{"weight_decay": 5e-4}``.

    Raises `DeclarationError` as `retract.manifolds.declare.walk` does, and for `manifold` options on a model
    that declares nothing.
    """
    groups: dict[tuple[Manifold, Rows], list[Declared]] = {}
    for point in walk(model):
        groups.setdefault((point.declaration.manifold, point.declaration.rows), []).append(point)
    if manifold and not groups:
        raise DeclarationError(
            f"options {manifold} for parameters on a manifold, but the model declares none; call retract.declare first"
        )
    result = []
    for (its, rows), points in groups.items():
        result.append(
            {
                "params": [part for point in points for part in point.parts],
                "names": [name for point in points for name in point.names],
                "joined": [point.parts for point in points if len(point.parts) > 1],
                "name": repr(its) if rows == Rows() else f"{its!r} {rows!r}",
                "manifold": its,
                "rows": rows,
                **(manifold or {}),
            }
        )
    taken = {id(part) for points in groups.values() for point in points for part in point.parts}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in taken]
    if rest:
        names, params = zip(*rest, strict=True)
        result.append({"params": list(params), "names": list(names), "name": "euclidean", **(euclidean or {})})
    return result
