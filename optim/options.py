"""The options of a parameter group: their names, admissible values, and the manifolds that support them."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError
from ..manifolds import (
    EmbeddedManifold,
    Euclidean,
    ExponentialManifold,
    GeodesicManifold,
    Hyperbolic,
    Manifold,
    ScalingQuotient,
    Spherical,
)
from .shapes import ADJUST_LR_FNS, described, has_coordinates, named

__all__ = [
    "COMMON",
    "FOREIGN",
    "FORMER",
    "FORMER_WORDS",
    "OPTIONS",
    "Option",
    "Options",
    "check_known",
    "check_names",
    "check_point",
    "check_together",
    "holds",
    "needs_reference",
    "number",
    "plain",
    "read_by",
    "read_numbers",
    "valid",
]

Options = Mapping[str, Any]
"""A parameter group, read by name. Options that the rule does not have are absent."""


@dataclass(frozen=True)
class _Number:
    """A validator for a real number, or a tensor of one element, that passes `test`."""

    test: Callable[[float], bool]
    failure: str
    none: bool = False
    """Whether None is admissible."""

    def __call__(self, name: str, value: Any) -> Any:
        if value is None and self.none:
            return None
        if not self.test(number(name, value)):
            raise OptionError(f"{name}={value!r} {self.failure}")
        return _python(value)


@dataclass(frozen=True)
class _Choice:
    """A validator for one of several values."""

    choices: tuple[Any, ...]

    def __call__(self, name: str, value: Any) -> Any:
        if not isinstance(value, bool | str | None) or value not in self.choices:
            raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, self.choices))}")
        return value


def _radius(name: str, value: Any) -> Any:
    """`value`, ``"hold"``, ``"free"`` or a positive number; raises `OptionError` for others."""
    if value in ("hold", "free") if isinstance(value, str) else 0.0 < number(name, value) < math.inf:
        return value if isinstance(value, str) else float(value)
    raise OptionError(f"{name}={value!r} is not one of 'hold', 'free' or a positive number")


def _betas(name: str, value: Any) -> Any:
    """`value` as a tuple; raises `OptionError` unless it is a pair of numbers in [0, 1)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise OptionError(f"{name}={value!r} is not a pair of numbers")
    for beta in value:
        if not _fraction.test(number(name, beta)):
            raise OptionError(f"{name}={value!r}: {beta!r} is outside [0, 1)")
    return tuple(map(_python, value))


def _python(value: Any) -> Any:
    """A number as an int, a float or a tensor."""
    return value if isinstance(value, int | float | Tensor) else float(value)


class Option(NamedTuple):
    """One option of a parameter group."""

    valid: Callable[[str, Any], Any]
    """Returns the value in its normal form; raises `OptionError` for one that is not admissible."""
    default: Any = None
    readers: str = ""
    """The uses of the option: ``points``, if not every manifold or parameter supports every value; ``plan``, if it decides how
    a group runs; ``kernel``, if it enters the numbers or choices of a row kernel."""


_fraction = _Number(lambda a: 0.0 <= a < 1.0, "is outside [0, 1)")
_nonnegative = _Number(lambda a: 0.0 <= a < math.inf, "is outside [0, inf)")
_positive = _Number(lambda a: 0.0 < a < math.inf, "is not a positive number")
_flag, _path = _Choice((False, True)), _Choice((None, False, True))

COMMON = {
    "weight_decay": Option(_nonnegative, 0.0, "points"),
    "decoupled_weight_decay": Option(_flag, False, "plan"),
    "tangent": Option(_Choice(("gradient", "step", "none")), "gradient", "points plan"),
    "shape": Option(named, None, "points plan"),
    "scale": Option(_positive, 1.0),
    "adjust_lr_fn": Option(_Choice(ADJUST_LR_FNS), None, "points"),
    "motion": Option(_Choice(("retract", "exp", "polar")), "retract", "points plan kernel"),
    "transport": Option(_Choice(("manifold", "project", "parallel", "none")), "manifold", "points kernel"),
    "max_point_norm": Option(
        _Number(lambda a: a > 0.0, "is not positive; None turns clipping off", none=True), None, "kernel"
    ),
    "orthogonality": Option(_nonnegative, 0.0, "points"),
    "radius": Option(_radius, "hold", "plan kernel"),
    "maximize": Option(_flag, False, "kernel"),
    "foreach": Option(_path, None, "points plan"),
    "fused": Option(_path, None, "points plan"),
    "capturable": Option(_flag, False, "plan"),
    "differentiable": Option(_flag, False, "points plan"),
}
"""Options that every group has, whatever its rule."""
OPTIONS = {
    "lr": Option(_nonnegative, None, "kernel"),
    "momentum": Option(_fraction, 0.0, "kernel"),
    "dampening": Option(_Number(math.isfinite, "is not a finite number"), 0.0, "kernel"),
    "nesterov": Option(_flag, False, "kernel"),
    "momentum_form": Option(_Choice(("heavy_ball", "velocity", "ema")), "heavy_ball", "plan kernel"),
    "betas": Option(_betas, (0.9, 0.999), "kernel"),
    "eps": Option(_nonnegative, 1e-8, "kernel"),
    "eps_form": Option(_Choice(("outside", "inside")), "outside", "plan kernel"),
    **COMMON,
}
"""All options of the optimizers here. The options of a user's rule are not checked."""


def read_by(reader: str) -> tuple[str, ...]:
    """The options that `reader` reads; see `Option`."""
    return tuple(name for name, option in OPTIONS.items() if reader in option.readers)


_NUMBERS = [name for name, option in OPTIONS.items() if isinstance(option.valid, _Number) and name != "lr"]
_PLAIN = {float, int, type(None)}
_FAST_PATHS = ("foreach", "fused")
_KEPT_BY_OTHERS = frozenset(
    {
        *("params", "param_names", "manifold", "rows", "joined", "slices", "euclidean", "name"),
        *("initial_lr", "swa_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "lr_scale"),
    }
)
"""Keys of a group that are not options: those of torch and of this library, of schedulers (torch's, and timm's lr_scale), and
``"name"``, which Lightning and others read."""
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
"""Names of other libraries for these options, where they are spelled differently."""

FORMER = {"max_grad_norm": "max_point_norm"}
"""Names of options in state_dicts of earlier versions."""
FORMER_WORDS = {"Grassmann(1)": "ProjectiveSpace()", "Rows(axis=": "Rows(dim="}
"""Names of manifolds and rows in state_dicts of earlier versions."""
FOREIGN = ("amsgrad", "compile")
"""An option of torch.optim.Adam, and one of earlier versions, without a counterpart here."""


def check_names(keys: Collection[Any], defaults: Options) -> None:
    """Raise `OptionError` for a key of a group that is not an option of this optimizer, and for a missing option.

    Known keys are the names of `defaults`, the keys of torch and of schedulers, and all that begin with an underscore.
    """
    foreign = [key for key in keys if key not in _KEPT_BY_OTHERS and not str(key).startswith("_")]
    check_known(foreign, defaults)
    for name in defaults:
        if name not in keys:
            raise OptionError(f"the option {name!r} is missing from a group; set it again")


def check_known(keys: Collection[Any], defaults: Options) -> None:
    """Raise `OptionError` for a key that is not in `defaults`."""
    for key in keys:
        if key in defaults:
            continue
        if not isinstance(key, str):
            raise OptionError(f"a group has the key {key!r}; options are named by strings")
        close = [_ELSEWHERE[key]] if key in _ELSEWHERE else difflib.get_close_matches(key, defaults, n=1, cutoff=0.55)
        hint = f"did you mean {close[0]!r}?" if close and close[0] in defaults else f"it has {', '.join(defaults)}."
        raise OptionError(
            f"this optimizer has no option {key!r}; {hint} A key of your own in a group begins with an underscore"
        )


def valid(name: str, value: Any) -> Any:
    """`value` of the option `name` in its normal form: NumPy's numbers as Python's, a pair as a tuple.

    Raises `OptionError` for a value that is not admissible.
    """
    value = plain(value)
    return OPTIONS[name].valid(name, value) if name in OPTIONS else value


def check_together(options: Options) -> None:
    """Raise `OptionError` for options, each valid alone, that exclude each other."""
    if options.get("nesterov") and "momentum" in options and (options["momentum"] == 0 or options["dampening"] != 0):
        raise OptionError(
            f"nesterov needs momentum > 0 and dampening = 0, not momentum={options['momentum']!r} and "
            f"dampening={options['dampening']!r}; or set nesterov=False"
        )
    if options.get("momentum_form") == "ema" and options["dampening"] != 0:
        raise OptionError(
            f"dampening={options['dampening']!r} with momentum_form='ema', which is dampened by the momentum; set it to 0"
        )
    if options["tangent"] != "gradient" and options["transport"] != "none":
        raise OptionError(
            f"tangent={options['tangent']!r} with transport={options['transport']!r}: the vectors of such a rule are not tangent, and "
            "are not transported; set transport='none'"
        )
    for factor, none in (("scale", 1), ("adjust_lr_fn", None)) if options["shape"] is None else ():
        if options[factor] != none:
            raise OptionError(
                f"{factor}={options[factor]!r} is a factor of a shaped step, and shape is None; change lr instead, and set {factor} to "
                f"{none} in this group"
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
    """`options` with all tensors but lr, which a step may need as a tensor, read as numbers.

    A tensor may have changed since the last step, so its value is checked by `valid`; lr only on a CPU, since reading it
    would wait for the device.
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
    """Raise `OptionError` if `manifold` does not support the options of its group; `name` is that of the parameter."""
    if isinstance(manifold, Euclidean):
        return
    if options["weight_decay"] != 0:
        raise OptionError(
            f"weight_decay={options['weight_decay']} on {name}: on {manifold!r} it does not regularize (on a quotient it only "
            "changes the learning rate). Decay the other parameters alone: param_groups(model, euclidean={'weight_decay': …})"
        )
    if options["tangent"] != "gradient" and not has_coordinates(manifold):
        raise OptionError(
            f"tangent={options['tangent']!r} on {name}: the coordinates of {manifold!r} are not orthonormal, and Euclidean gradients "
            "there are no steps; set tangent='gradient' in this group"
        )
    motion, transport = options["motion"], options["transport"]
    if motion == "polar" and not isinstance(manifold, EmbeddedManifold):
        raise OptionError(
            f"motion='polar' on {name}: it is the nearest point to x + u, and {manifold!r} is not embedded; use motion='retract'"
        )
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
            f"orthogonality={options['orthogonality']} on {name}: it is defined between unit vectors (Sphere, ProjectiveSpace, "
            f"PSI), not on {manifold!r}; set it to 0 in this group"
        )


def holds(manifold: Manifold, options: Options) -> bool:
    """Whether a step with `options` brings points of `manifold` back to a norm."""
    return isinstance(manifold, ScalingQuotient) and options["radius"] != "free"


def needs_reference(manifold: Manifold, rule: Any, options: Options) -> str:
    """The option, or what of the `Rule`, because of which only the reference path steps points of `manifold`; empty if there is none."""
    if manifold.event_ndim and options["shape"] is not None:
        return f"{described(options['shape'])} is a shape, which the reference path applies to stacks of matrices"
    if isinstance(manifold, Euclidean):
        return ""
    if rule.arrays or rule.averages_steps:
        kind = "stores numbers per coordinate" if rule.arrays else "measures its steps"
        return f"{type(rule).__name__} {kind}, as the reference path alone does"
    if isinstance(manifold, Hyperbolic) and manifold.row_kernel == "sheet" and options["transport"] == "none":
        return "transport='none' leaves vectors off the tangent spaces, whose first coordinates row kernels compute from the others"
    late = next((name for name in ("tangent", "motion") if options[name] in ("step", "none", "polar")), None)
    return f"{late}={options[late]!r} is defined on the reference path alone" if late else ""


def number(name: str, value: Any) -> float:
    """`value`, or that of a one-element tensor, as a float; raises `OptionError` for other values."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_meta:
            raise OptionError(
                f"{name} as a tensor needs one element with a value, not shape {tuple(value.shape)} on {value.device}"
            )
        if value.requires_grad and name != "lr":
            raise OptionError(
                f"{name} requires a gradient, but a step is differentiable in no option but lr; detach it"
            )
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
    """`value` with NumPy's numbers as Python's, which ``torch.load(weights_only=True)`` reads; tensors are unchanged."""
    if type(value) in (*_PLAIN, bool, str):
        return value
    if isinstance(value, list | tuple) and any(plain(item) is not item for item in value):
        return [*map(plain, value)] if isinstance(value, list) else tuple(map(plain, value))
    if type(value).__module__ == "numpy" and value.ndim == 0:
        return value.item()
    return value
