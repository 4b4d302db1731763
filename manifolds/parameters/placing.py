"""Projection of rows onto their manifold, with checks; also for the rows of a state_dict that is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import DeclarationError
from .. import numerics
from ..base import Manifold
from ..euclidean import Euclidean
from ..fixed_rank import FixedRank
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
    if isinstance(manifold, FixedRank) and representative == "balanced":
        _check_rank(name, points, manifold)
        return manifold.balanced(points)
    placed = manifold.nearest(points)
    manifold.check_point(placed, name)
    return placed


def _check_rank(name: str, points: Tensor, manifold: FixedRank) -> None:
    """Raise `DeclarationError` for factors without full rank: balanced, both lack it in the same columns, where both gradients
    vanish. Small values in their place would have to be smaller than the square of any step."""
    lacking = replace(manifold, damping=0.0).point_defect(points).reshape(-1) > 0
    if lacking.any():
        row = int(lacking.int().argmax())
        raise DeclarationError(
            f"{name}: row {row} has no balanced representative: {manifold.lack(points.reshape(-1, *points.shape[-2:])[row])}, and "
            "balanced factors with that product would stay where they are. Use representative='keep' with a damping, such as "
            "damping=1e-2, or start an adapter with the principal part of its base weight, FixedRank.principal"
        )


def refuse_stale(
    name: str,
    points: Tensor,
    placed: Tensor,
    stored: Iterable[Tensor],
    buffers: Iterable[tuple[str, Any]],
    remedy: str,
) -> None:
    """Raise `DeclarationError` if `placed` is elsewhere than `points`, by more than the types in which they are `stored` round,
    and trained running statistics are among `buffers`."""
    size = numerics.norm(points, points.ndim)
    rounding = max(torch.finfo(tensor.dtype).eps for tensor in stored)
    if numerics.norm(placed - points, points.ndim) <= max(rounding, numerics.tolerance(points.dtype)) * size:
        return
    for key, value in buffers:
        if _is_variance(key) and isinstance(value, Tensor) and (value != 1).any():
            raise DeclarationError(
                f"moving the rows of {name} may invalidate running statistics that have been trained ({key}): eval mode "
                f"depends on the old scale. {remedy}"
            )


def watch_loads(module: nn.Module, name: str) -> None:
    """Have ``load_state_dict`` put what it loads for declared parameters on their manifolds: that of `module`, of the owner of its
    parameter `name`, and of those between them that keep running statistics."""
    path = _path(module, name)
    for holder in path:
        if (holder in (path[0], path[-1]) or _has_statistics(holder)) and not _watches(holder):
            holder.register_load_state_dict_pre_hook(_place_loaded)
            holder.register_load_state_dict_post_hook(_mark_loaded)


def forget_loads(module: nn.Module, name: str) -> None:
    """Take back `watch_loads`, unless something else in the modules is still declared."""
    for holder in _path(module, name):
        if next(entries(holder), None) is None:
            for key in _watches(holder):
                del holder._load_state_dict_pre_hooks[key]
            after = holder._load_state_dict_post_hooks
            for key in [key for key, hook in after.items() if hook is _mark_loaded]:
                del after[key]


def _path(module: nn.Module, name: str) -> list[nn.Module]:
    """The modules from `module` to the owner of its parameter `name`."""
    steps = name.split(".")
    return [module.get_submodule(".".join(steps[:depth])) for depth in range(len(steps))]


def _has_statistics(module: nn.Module) -> bool:
    """Whether `module` or something in it keeps running statistics."""
    return any(_is_variance(key) for key, _ in module.named_buffers())


def _is_variance(key: str) -> bool:
    return key.rpartition(".")[2] == "running_var"


def _watches(module: nn.Module) -> list[int]:
    hooks = module._load_state_dict_pre_hooks
    return [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _place_loaded]


@torch.no_grad()
@numerics.full_precision()
def _place_loaded(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    _: bool,
    missing: list[str],
    *__: Any,
) -> None:
    """Replace the entries of `state_dict`, which is torch's copy of the user's, that are off their manifold.

    Points keep every bit, and rows of scaling quotients do not move. Entries that do not fit are left to torch. If a part of
    joint points is missing, that of the network moves along. Of tied names the last counts, as in torch.

    Raises `DeclarationError` for rows that are not points, and where the `state_dict`, or for entries that it lacks the
    network, has trained running statistics, which the move would invalidate. For the network on which it was declared,
    nothing is loaded then.
    """
    assign = local_metadata.get("assign_to_params_buffers", False)
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(prefix + name)
    kept = [(key, buffer) for name, buffer in module.named_buffers() if (key := prefix + name) not in state_dict]
    for entry in entries(module):
        manifold, parts = entry.declaration.manifold, entry.parts
        keys = [prefix + name for name in entry.names]
        if isinstance(manifold, (ScalingQuotient, Euclidean)) or len(parts) < len(keys):  # parametrized since
            continue
        # Assigned, each name gets a parameter of its own.
        ties = [[key] if assign else names[id(part)] for key, part in zip(keys, parts, strict=True)]
        found = [[key for key in tied if key in state_dict] for tied in ties]
        values: list[Any] = [state_dict[its[-1]] if its else part for its, part in zip(found, parts, strict=True)]
        if not any(found) or not all(_loadable(v, part, assign) for v, part in zip(values, parts, strict=True)):
            continue
        stored = [*values, *parts]
        if not assign:
            values = [value.to(part.device, part.dtype) for value, part in zip(values, parts, strict=True)]
        arrays, layouts = entry.declaration.arrays(entry.leaf, values)
        points = gather(arrays, layouts)
        placed = place(prefix + entry.name, points, manifold)
        moved, size = (numerics.norm(a, manifold.event_ndim) for a in (placed - points, points))
        if (moved <= torch.finfo(values[0].dtype).eps * size).all():  # on the manifold up to rounding
            continue
        refuse_stale(prefix + entry.name, points, placed, stored, state_dict.items(), _LOAD_FIRST)
        refuse_stale(prefix + entry.name, points, placed, stored, kept, _RESET_AND_LOAD)
        targets = [value.detach().clone() for value in values]
        scatter_(placed, entry.declaration.arrays(entry.leaf, targets)[0], layouts)
        for key, its, target in zip(keys, found, targets, strict=True):
            if not its:  # it is loaded, but was not given
                missing.append(key)
            state_dict.update(dict.fromkeys(its or [key], target))


_LOAD_FIRST = (
    "Load it before you declare: retract.undeclare the parameter, load, call reset_running_stats() on the normalization "
    "layers, declare, and then retract.psi.recalibrate(model, batches)"
)
_RESET_AND_LOAD = (
    "They are not among what is loaded. Load them along, or call reset_running_stats() on the normalization layers, load, and "
    "then retract.psi.recalibrate(model, batches); a parameter that no normalization layer follows is loaded by "
    "load_state_dict of its own module, where no statistics are looked for"
)


def _loadable(value: Any, part: nn.Parameter, assign: bool) -> bool:
    """Whether torch will load `value` into `part`, and it has values to move."""
    fits = isinstance(value, Tensor) and value.shape == part.shape and value.is_floating_point()
    return fits and not value.is_meta and (assign or not part.is_meta)


def _mark_loaded(module: nn.Module, _: Any) -> None:
    """Mark the new parameters that ``load_state_dict(assign=True)`` has made."""
    mark_all(module)
