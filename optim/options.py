"""The options of a parameter group: their names, their admissible values, and what a manifold can honour of them."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..manifolds import Euclidean, ExponentialManifold, GeodesicManifold, Manifold, Spherical

__all__ = [
    "COMMON",
    "FOREIGN",
    "FORMER",
    "FORMER_WORDS",
    "OF_POINTS",
    "Options",
    "check_names",
    "check_point",
    "check_together",
    "number",
    "plain",
    "read_numbers",
    "valid",
]

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
_NUMBERS = (*(name for name in _INTERVALS if name != "lr"), "dampening", "max_point_norm")
_PLAIN = {float, int, type(None)}
_SIMPLE = {*_PLAIN, bool, str}
_FAST_PATHS = ("foreach", "fused")
_FLAGS = (*_FAST_PATHS, "nesterov", "maximize", "capturable", "differentiable")
_OPEN = ("foreach", "fused")
"""Flags that may be None, for the fastest path."""
OF_POINTS = frozenset({"weight_decay", "motion", "transport", "orthogonality", "differentiable", *_FAST_PATHS})
"""Options that not every manifold, or not every parameter, can honour."""
_OF_EACH_OTHER = frozenset({*_FLAGS, "momentum", "dampening"})
"""Options whose values exclude each other."""
_KEPT_BY_OTHERS = frozenset(
    {
        *("params", "param_names", "manifold", "rows", "joined", "name"),
        *("initial_lr", "swa_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "lr_scale"),
    }
)
"""Keys of a group that are no options: torch's and our own, those that schedulers write (torch's, and timm's lr_scale), and
``"name"``, by which Lightning and others call a group."""
_ELSEWHERE = {
    "learning_rate": "lr",
    "step_size": "lr",
    "eta": "lr",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "clip": "max_point_norm",
    "clipnorm": "max_point_norm",
    "max_norm": "max_point_norm",
    "beta1": "betas",
    "beta2": "betas",
}
"""What other libraries call our options, where the spelling does not show it."""

FORMER = {"max_grad_norm": "max_point_norm"}
"""What options were called in state_dicts of earlier versions."""
FORMER_WORDS = {"Grassmann(1)": "ProjectiveSpace()", "Rows(axis=": "Rows(dim="}
"""What manifolds and rows were called there."""
FOREIGN = ("amsgrad", "decoupled_weight_decay", "compile")
"""Options of torch.optim.Adam, and one of earlier versions, that have no counterpart here."""
COMMON: dict[str, Any] = {
    "weight_decay": 0.0,
    "motion": "retract",
    "transport": "manifold",
    "max_point_norm": None,
    "orthogonality": 0.0,
    "radius": "hold",
    "maximize": False,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
"""Options that every group has, whatever its rule, and their defaults."""


def check_names(keys: Collection[Any], defaults: Options) -> None:
    """Raise `OptionError` for a key of a group that is no option of this optimizer, and for an option that is gone.

    Known are the names of `defaults`, what torch and schedulers keep in a group, and what begins with an underscore.
    """
    for key in keys:
        if key in defaults or key in _KEPT_BY_OTHERS:
            continue
        if not isinstance(key, str):
            raise OptionError(f"a group has the key {key!r}; options are named by strings")
        if key.startswith("_"):
            continue
        close = [_ELSEWHERE[key]] if key in _ELSEWHERE else difflib.get_close_matches(key, defaults, n=1, cutoff=0.55)
        hint = f"did you mean {close[0]!r}?" if close and close[0] in defaults else f"it has {', '.join(defaults)}."
        raise OptionError(
            f"this optimizer has no option {key!r}; {hint} A key of your own in a group begins with an underscore"
        )
    for name in defaults:
        if name not in keys:
            raise OptionError(f"a group has lost its option {name!r}; set it again")


def valid(name: str, value: Any) -> Any:
    """`value` of the option `name` as a group keeps it: NumPy's numbers as Python's, a pair as a tuple.

    Raises `OptionError` for a value outside the interval or the choices of `name`.
    """
    value = plain(value)
    if name in _CHOICES:
        if not isinstance(value, str) or value not in _CHOICES[name]:
            raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, _CHOICES[name]))}")
    elif name in _FLAGS:
        if not isinstance(value, bool) and not (name in _OPEN and value is None):
            raise OptionError(f"{name}={value!r} is not True or False{', or None' if name in _OPEN else ''}")
    elif name == "betas":
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise OptionError(f"betas={value!r} is not a pair of numbers")
        for beta in value:
            if not 0.0 <= number("betas", beta) < 1.0:
                raise OptionError(f"betas={value!r}: {beta!r} is outside [0, 1)")
        return tuple(map(_python, value))
    elif name in _INTERVALS:
        low, high = _INTERVALS[name]
        if not low <= number(name, value) < high:
            raise OptionError(f"{name}={value!r} is outside [{low:g}, {high:g})")
        return _python(value)
    elif name == "dampening":
        if not math.isfinite(number(name, value)):
            raise OptionError(f"dampening={value!r} is not a finite number")
        return _python(value)
    elif name == "max_point_norm" and value is not None:
        if not number(name, value) > 0:
            raise OptionError(f"max_point_norm={value!r} is not positive; None turns clipping off")
        return _python(value)
    return value


def check_together(options: Options, changed: Collection[str]) -> None:
    """Raise `OptionError` for options, each valid alone, that exclude each other; `changed` are new since the last time."""
    if _OF_EACH_OTHER.isdisjoint(changed):
        return
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
    """`options` with every tensor in it read as a number; lr is left, which a step may need as a tensor.

    A tensor may hold another number than at the last step, so it is checked as `valid` does; lr only on a CPU, since
    reading it waits for the device.
    """
    lr = options.get("lr")
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        valid("lr", lr)
    values = [*map(options.get, _NUMBERS), *options.get("betas", ())]
    if _PLAIN.issuperset(map(type, values)):
        return options
    found: dict[str, Any] = {
        name: float(valid(name, options[name])) for name in _NUMBERS if isinstance(options.get(name), Tensor)
    }
    if "betas" in options:
        found["betas"] = tuple(map(float, valid("betas", options["betas"])))
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
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_meta:
            raise OptionError(
                f"{name} as a tensor needs one element with a value, not shape {tuple(value.shape)} on {value.device}"
            )
        if value.requires_grad and name != "lr":
            raise OptionError(f"{name} requires a gradient, but of the options a step has one for lr alone; detach it")
        real = not (value.is_complex() or value.dtype == torch.bool)
        value = value.detach()
    else:
        value = plain(value)
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        if real:
            return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a tensor without one value; an int beyond 1e308
        pass
    hint = ""
    if isinstance(value, str):
        hint = "; write it without quotes (YAML takes 1e-1 for a string, and 1.0e-1 for a number)"
    raise OptionError(f"{name}={value!r} is not a number{hint}")


def plain(value: Any) -> Any:
    """`value` with NumPy's numbers in it as Python's, which ``torch.load(weights_only=True)`` reads; tensors as they are."""
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, list | tuple) and any(plain(its) is not its for its in value):
        return [*map(plain, value)] if isinstance(value, list) else tuple(map(plain, value))
    if type(value).__module__ == "numpy" and value.ndim == 0:
        return value.item()
    return value


def _python(value: Any) -> Any:
    """A number that is known to be one, as an int, a float or a tensor."""
    return value if isinstance(value, int | float | Tensor) else float(value)
