"""Saving and loading the state_dict of an optimizer: checked, matched by name, and copied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import StateError
from ..manifolds import Rows
from .execution.points import PointSet, scalar_dtype
from .options import FOREIGN, FORMER, FORMER_WORDS, plain

if TYPE_CHECKING:
    from .optimizer import RiemannianOptimizer

__all__ = ["check_owners", "merge", "pack", "restore"]

_FLAT, _MATRICES = "Euclidean(event_ndim=0)", "Euclidean(event_ndim=2)"
_GEOMETRY = (("manifold", _FLAT), ("rows", repr(Rows())), ("joined", ""), ("slices", ""))
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names of modules that DistributedDataParallel, torch.compile and others insert into the names of parameters."""


def check_owners(optimizer: RiemannianOptimizer) -> None:
    """Raise `StateError` for state of a parameter that is in no group any more; torch would raise a bare KeyError."""
    grouped = {p for group in optimizer.param_groups for p in group["params"]}
    labels = {
        part: points.name for points in chain.from_iterable(optimizer._table.values()) for part in points.parts
    } | optimizer._names
    for p in optimizer.state:
        if isinstance(p, Tensor) and p not in grouped:
            new = [
                f"parameter {i} of group {number}"
                for number, group in enumerate(optimizer.param_groups)
                for i, other in enumerate(group["params"])
                if other not in labels
            ]
            added = f"; {', '.join(new)} was put into a group without add_param_group" if new else ""
            raise StateError(
                f"{labels.get(p, 'a parameter')} of shape {tuple(p.shape)} has state and is in no group any more{added}. Build a "
                "new optimizer from retract.param_groups(model), or put the parameter back; to drop its state, del "
                "optimizer.state[parameter]"
            )


def pack(optimizer: RiemannianOptimizer, found: dict[str, Any]) -> dict[str, Any]:
    """torch's state_dict `found` with copies of its tensors, plain values, and the names of parameters."""
    groups = []
    for group, saved in zip(optimizer.param_groups, found["param_groups"], strict=True):
        names = _names(optimizer, group)
        shape = _written(group["shape"])
        groups.append({**_copied(saved), "shape": shape, **({"names": names} if names else {})})
    return {**found, "state": _copied(found["state"]), "param_groups": groups}


def merge(optimizer: RiemannianOptimizer, found: dict[str, Any]) -> dict[str, Any]:
    """The state_dict `found` ready to be loaded: groups checked, in the order of `optimizer`, and with the present values of
    options that it does not have.

    Raises `StateError` if it was saved with another geometry, rule, or other parameters, `OptionError` for options that the
    manifold of a group does not support.
    """
    merged = []
    groups = _in_order(optimizer, [*map(_renamed, found["param_groups"])])
    for group, saved, settings in zip(optimizer.param_groups, groups, optimizer._current_settings(), strict=True):
        saved = _translated(saved, group)
        for key, default in _GEOMETRY:
            if saved.get(key, default) != group[key]:
                raise StateError(
                    f"the state_dict was saved with {key} {saved.get(key, default)!r}, this group has {group[key]!r}: "
                    "its state means something else. Build the optimizer with the same declarations, or start without the state"
                )
        if len(group["params"]) != len(saved["params"]):
            raise StateError(
                f"a group of the state_dict has {len(saved['params'])} parameters, that of this optimizer {len(group['params'])}: "
                "it was saved with other parameters. Build the optimizer from the same model"
            )
        if "shape" in saved and saved["shape"] != _written(group["shape"]):
            raise StateError(
                f"the state_dict was saved with shape {saved['shape']}, this group has {_written(group['shape'])}: pass the same shape"
            )
        rule = optimizer.rule
        if not rule.options <= set(saved) or saved.get("amsgrad"):
            raise StateError(
                f"the state_dict is of another rule: {type(optimizer).__name__} needs {', '.join(sorted(rule.options))}, and has "
                "no amsgrad"
            )
        present = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        loaded = {key: value for key, value in saved.items() if key in present or key not in (*FOREIGN, "names")}
        loaded["shape"] = group["shape"]
        both = {**present, **loaded}
        merged.append({**both, **settings.valid(both)})
    for key, p in _pairs(optimizer, merged):
        _check_shapes(optimizer, p, found["state"].get(key, {}))
    return {**found, "param_groups": merged}


def _written(shape: Any) -> str | None:
    """The option `shape` as plain text; a class that is no dataclass has a repr of one object, and is known by its name."""
    if shape is None:
        return None
    return ", ".join(type(one).__name__ if repr(one) == object.__repr__(one) else repr(one) for one in shape)


def _renamed(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with the names of this version."""
    found = {FORMER.get(key, key): value for key, value in group.items()}
    for key in ("manifold", "rows"):
        for former, word in FORMER_WORDS.items():
            if isinstance(found.get(key), str):
                found[key] = re.sub(rf"\b{re.escape(former)}", word, found[key])
    return found


def _translated(saved: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """A `saved` group of torch.optim.Muon as one of this library, if `group` averages gradients of plain matrices as it does; its None
    is the factor ``"original"``, and its iteration is not loaded: it is the option `shape` here."""
    averages = group["manifold"] == _MATRICES and group["rows"] == repr(Rows()) and group.get("momentum_form") == "ema"
    if "ns_steps" not in saved or not averages or group["scale"] != 1:
        return saved
    kept = {key: value for key, value in saved.items() if key not in ("ns_coefficients", "ns_steps", "eps")}
    factor = saved["adjust_lr_fn"] or "original"
    return {**kept, "manifold": _MATRICES, "decoupled_weight_decay": True, "adjust_lr_fn": factor}


def restore(optimizer: RiemannianOptimizer, loaded: Mapping[str, Any]) -> None:
    """Finish the loading of `loaded`: torch shares its tensors, and casts all state to the dtype of the parameter, which would
    round scalars per point to half precision."""
    state, rule = optimizer.state, optimizer.rule
    params = dict(_pairs(optimizer, loaded["param_groups"]))
    capturable = {p for group in optimizer.param_groups if group["capturable"] for p in group["params"]}
    for key, saved in loaded["state"].items():
        p = params.get(key)
        if p is None:
            state[key] = _copied(saved)
            continue
        for name, value in saved.items():
            kind, _, number = name.partition(".")
            if kind in ("radius", *rule.scalars) and isinstance(value, Tensor):
                points = _led(optimizer, p, number)
                dtype = value.dtype if points is None else scalar_dtype(points.layouts()[0], p)
                state[p][name] = value.detach().to(device=p.device, dtype=dtype, copy=True)
            elif kind == "step":  # a number in state_dicts of early versions of torch
                # torch leaves "step" where it is, and moves the counters of slices.
                kept = isinstance(value, Tensor) and not number
                place = p.device if p in capturable else state[p][name].device if kept else None
                state[p][name] = torch.as_tensor(value).detach().to(dtype=torch.float32, device=place, copy=True)
            elif not isinstance(value, Tensor) or state[p][name] is value:
                state[p][name] = _copied(state[p][name])


def _pairs(optimizer: RiemannianOptimizer, saved: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Tensor]]:
    """Pairs of a key in a state_dict and the parameter that it belongs to."""
    return [
        pair
        for group, saved_group in zip(optimizer.param_groups, saved, strict=True)
        for pair in zip(saved_group["params"], group["params"], strict=True)
    ]


def _names(optimizer: RiemannianOptimizer, group: Mapping[str, Any]) -> list[str]:
    """The names of all parameters of `group`, or none if one has no name."""
    names = [optimizer._names.get(p) for p in group["params"]]
    return [] if None in names else names  # type: ignore[return-value]


def _bare(names: Sequence[str]) -> list[str]:
    """`names` without the parts that wrappers insert, if they remain distinct."""
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return bare if len(set(bare)) == len(bare) else [*names]


def _in_order(optimizer: RiemannianOptimizer, saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `saved` groups and their parameters in the order of `optimizer`.

    They are matched by name where both sides have names, otherwise by order, as in torch. String keys are names that
    torch.distributed.checkpoint has already ordered.
    """
    groups = optimizer.param_groups
    if len(groups) != len(saved):
        raise StateError(
            f"the state_dict has {len(saved)} groups, this optimizer {len(groups)}: it was saved with other parameters. Build "
            "the optimizer from the same model"
        )
    names = [_names(optimizer, group) for group in groups]
    saved_names = [group.get("names") or group.get("param_names") or [] for group in saved]
    counts = [len(group["params"]) for group in saved]
    by_name = all(names) and all(len(n) == count > 0 for n, count in zip(saved_names, counts, strict=True))
    if by_name and not any(isinstance(key, str) for group in saved for key in group["params"]):
        return _matched(names, saved_names, saved)
    return [*saved]


def _matched(
    names: Sequence[Sequence[str]], saved_names: Sequence[Sequence[str]], saved: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The `saved` groups, each with its parameters in the order of the group of the same `names`."""
    bare, saved_bare = _bare_groups(names), _bare_groups(saved_names)
    by_names = {frozenset(group_names): i for i, group_names in enumerate(saved_bare)}
    found = []
    for number, group_names in enumerate(bare):
        if frozenset(group_names) not in by_names:
            nearest = max(saved_bare, key=lambda other: len(set(other) & set(group_names)))
            raise StateError(
                f"the state_dict was saved with other parameters than group {number} of this optimizer: "
                f"{_listed(set(nearest) - set(group_names))} only there, {_listed(set(group_names) - set(nearest))} only here. "
                "Build the optimizer from the same model; where parameters were renamed, rename them under 'names' in the "
                "state_dict's groups, or delete 'names' to load by order"
            )
        i = by_names[frozenset(group_names)]
        index = {name: j for j, name in enumerate(group_names)}
        order = [saved_bare[i].index(name) for name in group_names]
        group = {**saved[i], "params": [saved[i]["params"][j] for j in order]}
        if "param_names" in group:
            group["param_names"] = [group["param_names"][j] for j in order]
        if group.get("joined"):
            group["joined"] = _renumbered(group["joined"], [index[name] for name in saved_bare[i]])
        found.append(group)
    return found


def _renumbered(joined: str, indices: Sequence[int]) -> str:
    """`joined` ("0+1, 2+3") with the new `indices` of the parameters, sorted by first part."""
    points = [[indices[int(part)] for part in parts.split("+")] for parts in joined.split(", ")]
    return ", ".join("+".join(map(str, parts)) for parts in sorted(points))


def _bare_groups(names: Sequence[Sequence[str]]) -> list[list[str]]:
    """The names of each group without the parts that wrappers insert."""
    rest = iter(_bare([name for group in names for name in group]))
    return [[next(rest) for _ in group] for group in names]


def _listed(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if first else "none"


def _check_shapes(optimizer: RiemannianOptimizer, p: Tensor, saved: Mapping[str, Any]) -> None:
    """Raise `StateError` for state of a parameter of another shape."""
    rule = optimizer.rule
    for name, value in saved.items():
        kind, _, number = name.partition(".")
        points = _led(optimizer, p, number)
        if name in rule.stored:
            shape = tuple(p.shape)
        elif kind in ("radius", *rule.scalars) and points is not None:
            shape = tuple(points.layouts()[0].scalar)
        else:
            continue
        if isinstance(value, Tensor) and tuple(value.shape) != shape:
            label = points.name if points is not None else optimizer._names.get(p, "a parameter")
            raise StateError(
                f"{label} of shape {tuple(p.shape)} needs {name} of shape {shape}, but the state_dict has {tuple(value.shape)}: "
                "it was saved with other parameters, or in another order"
            )


def _led(optimizer: RiemannianOptimizer, p: Tensor, number: str) -> PointSet | None:
    """The point set that `p` leads, of several sets of slices that with this `number`."""
    return next((points for points in optimizer._table.get(p, ()) if points.suffix == (number and f".{number}")), None)


def _copied(value: Any) -> Any:
    """`value` with copies of its tensors, and plain numbers."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(_copied, value)]
    if type(value) is tuple:
        return tuple(map(_copied, value))
    return plain(value)
