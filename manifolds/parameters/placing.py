"""Projection of rows onto their manifold, with checks; also for the rows of a state_dict that is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import DeclarationError
from .. import numerics
from ..base import Manifold
from ..euclidean import Euclidean
from ..quotient import ScalingQuotient
from .records import entries, mark_all
from .rows import gather, scatter_

__all__ = ["check_rows", "forget_loads", "place", "refuse_stale", "watch_loads"]


def check_rows(name: str, points: Tensor, manifold: Manifold) -> None:
    """Raise `DeclarationError` for a row that is not finite, or zero where zero is not a point of `manifold`."""
    size = numerics.norm(points, manifold.event_ndim)
    # Zero rows are admitted where the origin is a point (a ball, flat space).
    origin = manifold.point_defect(torch.zeros_like(points)) == 0
    for bad, what in ((~torch.isfinite(size), "not finite"), ((size == 0) & ~origin, "zero")):
        if bad.any():
            row = int(bad.reshape(-1).int().argmax())
            raise DeclarationError(
                f"{name}: row {row} is {what}, which is no point of {manifold!r}; re-initialize it or leave {name} undeclared"
            )


def place(name: str, points: Tensor, manifold: Manifold, representative: str = "keep") -> Tensor:
    """`points` moved onto `manifold`; raises `DeclarationError` for rows that do not represent a point."""
    check_rows(name, points, manifold)
    if isinstance(manifold, ScalingQuotient) and representative == "unit":
        return manifold.canonical(points)
    placed = manifold.nearest(points)
    manifold.check_point(placed, name)
    return placed


def refuse_stale(name: str, points: Tensor, placed: Tensor, buffers: Iterable[tuple[str, Any]], remedy: str) -> None:
    """Raise `DeclarationError` if `placed` differs from `points`, and trained running statistics are among `buffers`."""
    size = numerics.norm(points, points.ndim)
    if numerics.norm(placed - points, points.ndim) <= numerics.tolerance(points.dtype) * size:
        return
    for key, value in buffers:
        if key.rpartition(".")[2] == "running_var" and isinstance(value, Tensor) and (value != 1).any():
            raise DeclarationError(
                f"moving the rows of {name} may invalidate running statistics that have been trained ({key}): eval mode "
                f"depends on the old scale. {remedy}"
            )


def watch_loads(module: nn.Module) -> None:
    """Add hooks by which ``module.load_state_dict`` projects declared parameters onto their manifolds."""
    if not _watches(module):
        module.register_load_state_dict_pre_hook(_place_loaded)
        module.register_load_state_dict_post_hook(_mark_loaded)


def forget_loads(module: nn.Module) -> None:
    """Remove the hooks of `watch_loads`, unless `module` still has a declaration."""
    if next(entries(module), None) is None:
        for key in _watches(module):
            del module._load_state_dict_pre_hooks[key]
        after = module._load_state_dict_post_hooks
        for key in [key for key, hook in after.items() if hook is _mark_loaded]:
            del after[key]


def _watches(module: nn.Module) -> list[int]:
    hooks = module._load_state_dict_pre_hooks
    return [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _place_loaded]


@torch.no_grad()
@numerics.full_precision()
def _place_loaded(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    """Replace the entries of `state_dict`, which is torch's copy of the user's, that are off their manifold.

    Points keep every bit, and rows of scaling quotients do not move. Entries that do not fit are left to torch.

    Raises `DeclarationError` for rows that are not points, and where the `state_dict` of the network has trained running
    statistics, which the move would invalidate. For the network on which it was declared, nothing is loaded then.
    """
    assign = local_metadata.get("assign_to_params_buffers", False)
    for entry in entries(module):
        manifold, rows = entry.declaration.manifold, entry.declaration.rows
        keys = [prefix + name for name in entry.names]
        if isinstance(manifold, (ScalingQuotient, Euclidean)) or not all(key in state_dict for key in keys):
            continue
        if len(entry.parts) < len(keys):  # parametrized since
            continue
        values: list[Any] = [state_dict[key] for key in keys]
        if not all(_loadable(value, part, assign) for value, part in zip(values, entry.parts, strict=True)):
            continue
        if not assign:
            values = [value.to(part.device, part.dtype) for value, part in zip(values, entry.parts, strict=True)]
        layouts = [rows.layout(value, manifold.event_ndim) for value in values]
        points = gather(values, layouts)
        placed = place(prefix + entry.name, points, manifold)
        moved, size = (numerics.norm(a, manifold.event_ndim) for a in (placed - points, points))
        if (moved <= torch.finfo(values[0].dtype).eps * size).all():  # on the manifold up to rounding
            continue
        refuse_stale(prefix + entry.name, points, placed, state_dict.items(), _LOAD_FIRST)
        targets = [value.clone() for value in values]
        scatter_(placed, targets, layouts)
        state_dict.update(zip(keys, targets, strict=True))


_LOAD_FIRST = (
    "Load it before you declare: retract.undeclare the parameter, load, call reset_running_stats() on the normalization "
    "layers, declare, and then retract.psi.recalibrate(model, batches)"
)


def _loadable(value: Any, part: nn.Parameter, assign: bool) -> bool:
    """Whether torch will load `value` into `part`, and it has values to move."""
    fits = isinstance(value, Tensor) and value.shape == part.shape and value.is_floating_point()
    return fits and not value.is_meta and (assign or not part.is_meta)


def _mark_loaded(module: nn.Module, _: Any) -> None:
    """Mark the new parameters that ``load_state_dict(assign=True)`` has made."""
    mark_all(module)
