"""A model's arithmetic without its roundings: float64 throughout, and on demand no eps in its norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Exact"]

EPS_FACTOR = 2.0**-60
"""An eps of 1e-5 becomes 1e-23: nothing beside a variance of 1 even after four layers in a row have been divided by 128,
and still above the 1e-32 that a constant channel has by rounding."""
SMALL = 1e-3
"""Largest constant that a sum or a lower bound written by hand may have and still be taken for an eps."""

# Where functions take their eps by position; a keyword "eps" is recognised everywhere.
_POSITION = {
    "batch_norm": 7,
    "instance_norm": 7,
    "native_batch_norm": 7,
    "native_group_norm": 7,
    "layer_norm": 4,
    "native_layer_norm": 4,
    "group_norm": 4,
    "rms_norm": 3,
    "normalize": 3,
    "cosine_similarity": 3,
}
# x + eps, eps + x and max(x, eps), in all their spellings.
_BY_HAND = frozenset(
    "add add_ __add__ __radd__ __iadd__ clamp clamp_ clamp_min clamp_min_ clip clip_ maximum".split()  # noqa: SIM905
)
_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_CASTS = {
    "half": torch.float64,
    "bfloat16": torch.float64,
    "float": torch.float64,
    "cfloat": torch.complex128,
}


class Exact(TorchFunctionMode):
    """While active, whatever asks for a narrower floating-point type gets float64 (complex128), so that a norm which casts
    to float32 loses nothing; and with ``eps=False`` every eps is multiplied by `EPS_FACTOR`.

    An eps is what torch's normalization functions take as such, and a positive constant up to `SMALL` that is
    added or serves as a lower bound. Code outside Python (TorchScript, custom kernels) is not seen.
    """

    def __init__(self, *, eps: bool) -> None:
        super().__init__()
        self._eps = eps

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """`func` with its arguments replaced."""
        name = getattr(func, "__name__", "")
        if name in _CASTS and len(args) == 1:
            return args[0].to(_CASTS[name])
        args = tuple(_wider(a) for a in args)
        kwargs = {key: _wider(a) for key, a in (kwargs or {}).items()}
        if not self._eps:
            if isinstance(kwargs.get("eps"), float):
                kwargs["eps"] *= EPS_FACTOR
            place = _POSITION.get(name)
            if place is not None and len(args) > place and isinstance(args[place], float):
                args = (*args[:place], args[place] * EPS_FACTOR, *args[place + 1 :])
            if name in _BY_HAND:
                args = tuple(_without(a) for a in args)
                kwargs = {key: _without(a) if key in ("other", "min") else a for key, a in kwargs.items()}
        return func(*args, **kwargs)


def _wider(value: Any) -> Any:
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def _without(value: Any) -> Any:
    """`value`, made smaller if it is a number that may be an eps."""
    number = isinstance(value, float) or (
        isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point() and not value.requires_grad
    )
    return value * EPS_FACTOR if number and 0 < value <= SMALL else value
