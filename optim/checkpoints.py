"""What goes into the state_dict of an optimizer, and how one is taken back: checked, matched by name, and copied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import StateError
from ..manifolds import Rows
from .execution.points import number_dtype
from .options import FOREIGN, FORMER, FORMER_WORDS, plain

if TYPE_CHECKING:
    from .optimizer import RiemannianOptimizer

__all__ = ["check_owners", "merge", "pack", "restore"]

_FLAT = "Euclidean(event_ndim=0)"
_GEOMETRY = (("manifold", _FLAT), ("rows", repr(Rows())), ("joined", ""))
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DistributedDataParallel, torch.compile and others put into the names of parameters."""


def check_owners(optimizer: RiemannianOptimizer) -> None:
    """Raise `StateError` for state of a parameter that is in no group any more, which torch ends in a bare KeyError."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    labels = {part: points.name for points in optimizer._table.values() for part in points.parts} | optimizer._names
    for p in optimizer.state:
        if isinstance(p, Tensor) and p not in held:
            new = [
                f"parameter {i} of group {number}"
                for number, group in enumerate(optimizer.param_groups)
                for i, other in enumerate(group["params"])
                if other not in labels
            ]
            took = f"; {', '.join(new)} took a place that nobody gave it here" if new else ""
            raise StateError(
                f"{labels.get(p, 'a parameter')} of shape {tuple(p.shape)} has state and is in no group any more{took}. Build a "
                "new optimizer from retract.param_groups(model), or put the parameter back; for one that is to be forgotten, del "
                "optimizer.state[parameter]"
            )


def pack(optimizer: RiemannianOptimizer, found: dict[str, Any]) -> dict[str, Any]:
    """torch's state_dict `found` as copies, which later steps do not change, with names and plain values."""
    groups = []
    for group, its in zip(optimizer.param_groups, found["param_groups"], strict=True):
        names = _names(optimizer, group)
        groups.append({**_copied(its), **({"names": names} if names else {})})
    return {**found, "state": _copied(found["state"]), "param_groups": groups}


def merge(optimizer: RiemannianOptimizer, found: dict[str, Any]) -> dict[str, Any]:
    """The state_dict `found` as it can be loaded: its groups checked, in the order of `optimizer`, and with the options that
    they do not say as they are here.

    Raises `StateError` if it was saved with another geometry, rule, or other parameters, `OptionError` for options that
    cannot be honoured.
    """
    merged = []
    groups = _in_order(optimizer, [*map(_renamed, found["param_groups"])])
    for group, its, settings in zip(optimizer.param_groups, groups, optimizer.settings(), strict=True):
        for key, default in _GEOMETRY:
            if its.get(key, default) != group[key]:
                raise StateError(
                    f"the state_dict was saved with {key} {its.get(key, default)!r}, this group has {group[key]!r}: "
                    "its state means something else. Build the optimizer with the same declarations, or start afresh"
                )
        if len(group["params"]) != len(its["params"]):
            raise StateError(
                f"a group of the state_dict has {len(its['params'])} parameters, that of this optimizer {len(group['params'])}: it "
                "was saved with others"
            )
        rule = optimizer.rule
        decoupled = its.get("decoupled_weight_decay") and its.get("weight_decay")
        if not rule.options <= set(its) or its.get("amsgrad") or decoupled:
            raise StateError(
                f"the state_dict is of another rule: {type(optimizer).__name__} needs {', '.join(sorted(rule.options))}, and has "
                "neither amsgrad nor decoupled weight decay"
            )
        kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        both = {**kept, **{key: value for key, value in its.items() if key in kept or key not in (*FOREIGN, "names")}}
        merged.append({**both, **settings.valid(both)})
    for key, p in _pairs(optimizer, merged):
        _check_shapes(optimizer, p, found["state"].get(key, {}))
    return {**found, "param_groups": merged}


def _renamed(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group in the words of this version."""
    found = {FORMER.get(key, key): value for key, value in group.items()}
    for key in ("manifold", "rows"):
        for former, word in FORMER_WORDS.items():
            if isinstance(found.get(key), str):
                found[key] = re.sub(rf"\b{re.escape(former)}", word, found[key])
    return found


def restore(optimizer: RiemannianOptimizer, loaded: Mapping[str, Any]) -> None:
    """Finish what torch has made of `loaded`: it shares tensors with it, and casts all state to the dtype of its parameter,
    which would round numbers per point to half precision."""
    state, rule = optimizer.state, optimizer.rule
    params = dict(_pairs(optimizer, loaded["param_groups"]))
    capturable = {p for group in optimizer.param_groups if group["capturable"] for p in group["params"]}
    for key, saved in loaded["state"].items():
        p = params.get(key)
        if p is None:
            state[key] = _copied(saved)
            continue
        for name, value in saved.items():
            if name in ("radius", *rule.scalars) and isinstance(value, Tensor):
                dtype = number_dtype(optimizer._table[p].layouts()[0], p) if p in optimizer._table else value.dtype
                state[p][name] = value.detach().to(device=p.device, dtype=dtype, copy=True)
            elif name == "step":  # a number in torch's state_dicts of old
                place = p.device if p in capturable else state[p][name].device if isinstance(value, Tensor) else None
                state[p][name] = torch.as_tensor(value).detach().to(dtype=torch.float32, device=place, copy=True)
            elif not isinstance(value, Tensor) or state[p][name] is value:
                state[p][name] = _copied(state[p][name])


def _pairs(optimizer: RiemannianOptimizer, saved: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Tensor]]:
    """Key in a state_dict → parameter."""
    return [
        pair
        for group, its in zip(optimizer.param_groups, saved, strict=True)
        for pair in zip(its["params"], group["params"], strict=True)
    ]


def _names(optimizer: RiemannianOptimizer, group: Mapping[str, Any]) -> list[str]:
    """Those of all parameters of `group`, or none."""
    names = [optimizer._names.get(p) for p in group["params"]]
    return [] if None in names else names  # type: ignore[return-value]


def _bare(names: Sequence[str]) -> list[str]:
    """`names` without what wrappers put into them, where they still tell the parameters apart."""
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return bare if len(set(bare)) == len(bare) else [*names]


def _in_order(optimizer: RiemannianOptimizer, saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`saved` groups and their parameters in the order of those of `optimizer`.

    They are matched by name where both sides have names, else by their places, as torch does. Keys that are strings are
    names already, which torch.distributed.checkpoint has put in order.
    """
    mine = optimizer.param_groups
    if len(mine) != len(saved):
        raise StateError(f"the state_dict has {len(saved)} groups, this optimizer {len(mine)}")
    here = [_names(optimizer, group) for group in mine]
    there = [its.get("names") or its.get("param_names") or [] for its in saved]
    by_name = all(here) and all(len(names) == len(its["params"]) > 0 for names, its in zip(there, saved, strict=True))
    if by_name and not any(isinstance(key, str) for its in saved for key in its["params"]):
        return _matched(here, there, saved)
    return [*saved]


def _matched(
    here: Sequence[Sequence[str]], there: Sequence[Sequence[str]], saved: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    sizes = [len(names) for names in here], [len(names) for names in there]
    own = _split(_bare([name for names in here for name in names]), sizes[0])
    its = _split(_bare([name for names in there for name in names]), sizes[1])
    by_names = {frozenset(names): i for i, names in enumerate(its)}
    found = []
    for number, names in enumerate(own):
        if frozenset(names) not in by_names:
            nearest = max(its, key=lambda other: len(set(other) & set(names)))
            raise StateError(
                f"the state_dict was saved with other parameters than group {number} of this optimizer: "
                f"{_told(set(nearest) - set(names))} only there, {_told(set(names) - set(nearest))} only here. Build the optimizer "
                "from the same model; where parameters were renamed, rename them under 'names' in the state_dict's groups, or "
                "take 'names' out to load by order"
            )
        i = by_names[frozenset(names)]
        place = {name: j for j, name in enumerate(names)}
        order = [its[i].index(name) for name in names]
        group = {**saved[i], "params": [saved[i]["params"][j] for j in order]}
        if "param_names" in group:
            group["param_names"] = [group["param_names"][j] for j in order]
        if group.get("joined"):
            group["joined"] = _renumbered(group["joined"], [place[name] for name in its[i]])
        found.append(group)
    return found


def _renumbered(joined: str, places: Sequence[int]) -> str:
    """The places in `joined` ("0+1, 2+3") as they are here, first part by first part."""
    points = [[places[int(part)] for part in parts.split("+")] for parts in joined.split(", ")]
    return ", ".join("+".join(map(str, parts)) for parts in sorted(points))


def _split(names: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    rest = iter(names)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _told(names: set[str]) -> str:
    few = sorted(names)[:3]
    return ", ".join(few) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if few else "none"


def _check_shapes(optimizer: RiemannianOptimizer, p: Tensor, saved: Mapping[str, Any]) -> None:
    """Raise `StateError` for state that was made by a parameter of another shape."""
    rule, points = optimizer.rule, optimizer._table.get(p)
    for name, value in saved.items():
        if name in rule.vectors:
            shape = tuple(p.shape)
        elif name in ("radius", *rule.scalars) and points is not None:
            shape = tuple(points.layouts()[0].scalar)
        else:
            continue
        if isinstance(value, Tensor) and tuple(value.shape) != shape:
            label = points.name if points is not None else optimizer._names.get(p, "a parameter")
            raise StateError(
                f"{label} of shape {tuple(p.shape)} needs {name} of shape {shape}, but the state_dict has {tuple(value.shape)}: "
                "it was saved with other parameters, or in another order"
            )


def _copied(value: Any) -> Any:
    """`value` with copies of its tensors, and plain numbers."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(its) for key, its in value.items()}
    if isinstance(value, list):
        return [*map(_copied, value)]
    if type(value) is tuple:
        return tuple(map(_copied, value))
    return plain(value)
