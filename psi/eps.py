"""Recognizing an eps in a call of torch, and making the same call without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["floor", "set_aside", "spelled_out"]

EPS_FACTOR = 2.0**-60
"""An eps of 1e-5 becomes 1e-23: nothing beside a variance of 1 even after four layers in a row have been divided by 128,
and still above the 1e-32 that a constant channel has by rounding."""
SMALL = 1e-3
"""Largest constant that a sum or a lower bound written by hand may have and still be taken for an eps."""
NOTHING = 1e-30
"""Constants up to here need no setting aside, and the smallest would become zero."""

# Where functions take their eps by position, and what it is where none is given; a keyword "eps" is recognised everywhere.
_REQUIRED = object()
_POSITION: dict[str, tuple[int, Any]] = {
    "batch_norm": (7, _REQUIRED),
    "instance_norm": (7, _REQUIRED),
    "native_batch_norm": (7, _REQUIRED),
    "native_group_norm": (7, _REQUIRED),
    "layer_norm": (4, 1e-5),
    "native_layer_norm": (4, _REQUIRED),
    "group_norm": (4, 1e-5),
    "rms_norm": (3, None),
    "normalize": (3, 1e-12),
    "cosine_similarity": (3, 1e-8),
    "pairwise_distance": (3, 1e-6),
}
# x + eps, eps + x and max(x, eps), in all their spellings.
_BY_HAND = frozenset(
    "add add_ __add__ __radd__ __iadd__ clamp clamp_ clamp_min clamp_min_ clip clip_ max maximum fmax hypot".split()  # noqa: SIM905
)
# A lower bound written as a choice.
_CHOICES = frozenset(("where", "masked_fill", "masked_fill_", "__setitem__"))

Call = tuple[tuple[Any, ...], dict[str, Any]]


def spelled_out(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], implicit: float) -> Call:
    """The call of torch's function `name` with its eps as a number: its default where it was given none, and `implicit` where that
    is None, which torch takes for the precision of the type it computes in."""
    if name not in _POSITION:
        return args, kwargs
    place, default = _POSITION[name]
    eps = args[place] if len(args) > place else kwargs.get("eps", default)
    eps = implicit if eps is None else eps
    if len(args) > place:
        return (*args[:place], eps, *args[place + 1 :]), kwargs
    return args, kwargs if eps is _REQUIRED else kwargs | {"eps": eps}


def set_aside(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call of torch's function `name`, spelled out, with every eps multiplied by `EPS_FACTOR`.

    An eps is what torch's functions take as such, and a positive constant up to `SMALL` that is added or serves as a lower bound: a
    number, or a tensor that holds one number only and needs no gradient.
    """
    if kwargs.get("eps") is not None:
        kwargs = kwargs | {"eps": kwargs["eps"] * EPS_FACTOR}
    place, _ = _POSITION.get(name, (len(args), None))
    if len(args) > place:
        args = (*args[:place], args[place] * EPS_FACTOR, *args[place + 1 :])
    if name in _BY_HAND:
        args = tuple(a if _constant(a) is None else a * EPS_FACTOR for a in args)
        kwargs = {
            k: a if k not in ("other", "min") or _constant(a) is None else a * EPS_FACTOR for k, a in kwargs.items()
        }
    return args, kwargs


def floor(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What torch's function `name` returns with its eps set aside if the call is a lower bound written as a choice, x where it is
    above eps and eps elsewhere; otherwise None."""
    if name not in _CHOICES or len(args) != 3 or kwargs:
        return None
    if name == "where":
        # As a function (condition, x, eps), as a method (x, condition, eps).
        mask, chosen, other = args if args[0].dtype == torch.bool else (args[1], args[0], args[2])
        x, mask, eps = (chosen, ~mask, other) if _constant(chosen) is None else (other, mask, chosen)
    else:
        x, mask, eps = args
    bound = _constant(eps)
    if bound is None or not isinstance(x, Tensor) or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return None
    if not torch.equal(torch.where(mask, bound, x), x.clamp(min=bound)):
        return None
    return (x.clamp if name in ("where", "masked_fill") else x.clamp_)(min=bound * EPS_FACTOR)


def _constant(value: Any) -> float | None:
    """The number that `value` is or that fills it, if it may be an eps."""
    if isinstance(value, Tensor):
        if value.requires_grad or not value.is_floating_point() or value.numel() == 0:
            return None
        try:
            first = value[(0,) * value.ndim].item()
        except RuntimeError:  # inside of vmap, for one
            return None
        return first if NOTHING < first <= SMALL and bool((value == first).all()) else None
    return float(value) if isinstance(value, float | np.floating) and NOTHING < value <= SMALL else None
