"""The options of a parameter group: their admissible values, checked once, when the group is added."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..manifolds import Euclidean, ExponentialManifold, GeodesicManifold, Manifold, Spherical
from ..manifolds.errors import OptionError

__all__ = ["COMMON", "FOREIGN", "Options", "check_group", "check_names", "check_point", "number", "read_numbers"]

Options = Mapping[str, Any]
"""A parameter group, read by name. Options that a rule does not have are absent."""

_CHOICES = {
    "momentum_form": ("heavy_ball", "velocity"),
    "eps_form": ("outside", "inside"),
    "motion": ("retract", "exp"),
    "transport": ("manifold", "project", "parallel", "none"),
    "radius": ("hold", "free"),
}
_INTERVALS = {
    "lr": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "orthogonality": (0.0, math.inf),
    "eps": (0.0, math.inf),
}
_NUMBERS = (*(name for name in _INTERVALS if name != "lr"), "dampening", "max_grad_norm")
_PLAIN = {float, int, type(None)}
_FAST_PATHS = ("foreach", "fused", "compile")
_FLAGS = (*_FAST_PATHS, "nesterov", "maximize", "capturable", "differentiable")
_OPEN = ("foreach", "fused")
"""Flags that may be None, for the fastest path."""
_SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")


FOREIGN = ("amsgrad", "decoupled_weight_decay")
"""Options of torch.optim.Adam that have no counterpart here."""
COMMON: dict[str, Any] = {
    "weight_decay": 0.0,
    "motion": "retract",
    "transport": "manifold",
    "max_grad_norm": None,
    "orthogonality": 0.0,
    "radius": "hold",
    "maximize": False,
    "foreach": None,
    "fused": None,
    "compile": False,
    "capturable": False,
    "differentiable": False,
}
"""Options that every group has, whatever its rule, and their defaults."""
# Every option that some rule has; a group may carry other keys (schedulers and users put theirs there).
_ALL = frozenset({*_CHOICES, *_INTERVALS, *COMMON, *FOREIGN, "betas", "dampening", "nesterov"})


def check_names(group: Options, defaults: Options) -> None:
    """Raise `OptionError` for an option of another rule, or one that looks like a slip of the pen."""
    for key in group:
        if key in defaults or key == "params":
            continue
        if not isinstance(key, str):
            raise OptionError(f"a group has the key {key!r}; options are named by strings")
        close = difflib.get_close_matches(key, defaults, n=1, cutoff=0.8)
        if key in _ALL or (close and key not in _SCHEDULER_KEYS):
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(defaults)}"
            raise OptionError(f"this optimizer has no option {key!r}{hint}")


def check_group(options: Options) -> None:
    """Raise `OptionError` for a value outside its interval or choices, or one that cannot be honoured."""
    for name, (low, high) in _INTERVALS.items():
        if name in options and not low <= number(name, options[name]) < high:
            raise OptionError(f"{name}={options[name]!r} is outside [{low:g}, {high:g})")
    for name, choices in _CHOICES.items():
        if name in options and options[name] not in choices:
            raise OptionError(f"{name}={options[name]!r} is not one of {', '.join(map(repr, choices))}")
    for name in _FLAGS:
        if not isinstance(options.get(name, False), bool) and not (name in _OPEN and options[name] is None):
            raise OptionError(f"{name}={options[name]!r} is not True or False{', or None' if name in _OPEN else ''}")
    betas = options.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise OptionError(f"betas={betas!r} is not a pair of numbers")
    for beta in betas:
        if not 0.0 <= number("betas", beta) < 1.0:
            raise OptionError(f"betas={options['betas']!r}: {beta!r} is outside [0, 1)")
    if "dampening" in options and not math.isfinite(number("dampening", options["dampening"])):
        raise OptionError(f"dampening={options['dampening']!r} is not a finite number")
    limit = options["max_grad_norm"]
    if limit is not None and not number("max_grad_norm", limit) > 0:
        raise OptionError(f"max_grad_norm={limit!r} is not positive; None turns clipping off")
    if options.get("nesterov") and "momentum" in options and (options["momentum"] == 0 or options["dampening"] != 0):
        raise OptionError(
            f"nesterov needs momentum > 0 and dampening = 0, not momentum={options['momentum']!r} and "
            f"dampening={options['dampening']!r}"
        )
    asked = [name for name in _FAST_PATHS if options[name]]
    if len(asked) > 1:
        raise OptionError(
            f"{' and '.join(f'{name}=True' for name in asked)}: a step takes one path; ask for one of them"
        )
    for name in ("differentiable", "capturable"):
        if asked and options[name]:
            raise OptionError(
                f"{asked[0]}=True with {name}=True: such a step runs on the reference path; leave {asked[0]} at its default"
            )


def read_numbers(options: Options) -> Options:
    """`options` with every tensor in it read as a number; lr is left, which a step may need as a tensor."""
    values = [*map(options.get, _NUMBERS), *options.get("betas", ())]
    if _PLAIN.issuperset(map(type, values)):
        return options
    found: dict[str, Any] = {name: float(options[name]) for name in _NUMBERS if isinstance(options.get(name), Tensor)}
    if "betas" in options:
        found["betas"] = tuple(map(float, options["betas"]))
    return {**options, **found}


def check_point(name: str, manifold: Manifold, options: Options) -> None:
    """Raise `OptionError` if `manifold` cannot honour the options of its group; `name` is the parameter's."""
    if isinstance(manifold, Euclidean):
        return
    if options["weight_decay"] != 0:
        raise OptionError(
            f"weight_decay={options['weight_decay']} on {name}: on {manifold!r} it does not shrink anything that matters "
            "(on a quotient it only changes the learning rate). Decay the other parameters alone: "
            "param_groups(model, euclidean={'weight_decay': …})"
        )
    motion, transport = options["motion"], options["transport"]
    if motion == "exp" and not isinstance(manifold, ExponentialManifold):
        raise OptionError(f"motion='exp' on {name}: {manifold!r} has no exponential map; use motion='retract'")
    needs_parallel = transport == "parallel" or (motion == "exp" and transport == "manifold")
    if needs_parallel and not isinstance(manifold, GeodesicManifold):
        raise OptionError(
            f"motion={motion!r} with transport={transport!r} on {name}: {manifold!r} has no parallel transport; use "
            "transport='project'"
        )
    if options["orthogonality"] and not isinstance(manifold, Spherical):
        raise OptionError(
            f"orthogonality={options['orthogonality']} on {name}: it is defined between unit vectors (Sphere, Grassmann(1), "
            f"PSI), not on {manifold!r}; set it to 0 in this group"
        )


def number(name: str, value: Any) -> float:
    """`value`, also of a one-element tensor; raises `OptionError` for what is no number."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_meta:
            raise OptionError(
                f"{name} as a tensor needs one element with a value, not shape {tuple(value.shape)} on {value.device}"
            )
        if value.requires_grad and name != "lr":
            raise OptionError(f"{name} requires a gradient, but of the options a step has one for lr alone; detach it")
        value = value.detach()
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last for complex tensors
        raise OptionError(f"{name}={value!r} is not a number") from None
