"""Running a model's arithmetic in one wide floating-point type, with a fallback for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .eps import floor, set_aside, spelled_out

__all__ = ["Exact", "Lenient", "widened"]

_COMPLEX = {
    torch.float16: torch.complex32,
    torch.bfloat16: torch.complex64,
    torch.float32: torch.complex64,
    torch.float64: torch.complex128,
}
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_CASTS = {"half": False, "bfloat16": False, "float": False, "double": False, "cfloat": True, "cdouble": True}


def widened(dtype: torch.dtype, wide: torch.dtype) -> torch.dtype:
    """`wide` for the floating-point types of 16 bits and more, its complex counterpart for complex ones, other types as they are.

    What has 8 bits and less stays: the model unpacks it itself.
    """
    return wide if dtype in _COMPLEX else _COMPLEX[wide] if dtype in _REAL else dtype


class Lenient(TorchFunctionMode):
    """While active, an operation that does not know the type of its arguments runs in another, and its result is cast back.

    Args:
        others: types to try, in this order. Gradients pass through the casts.

    Code outside Python (TorchScript, custom kernels) is not seen.
    """

    def __init__(self, others: Iterable[torch.dtype]) -> None:
        super().__init__()
        self._others = tuple(others)
        self.used: dict[str, torch.dtype] = {}
        """Operations that had to run in another type, and in which."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """`func`, in another type where it refuses that of its arguments."""
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            again = self._again(func, args, kwargs)
            if again is None:
                raise
        return again[0]

    def _again(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """The result in the first type that `func` accepts, or None. Constants may have been made in a narrower type than the
        rest, so the widest that there is comes first."""
        name = getattr(func, "__name__", str(func))
        floats = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and _real(t.dtype) in _COMPLEX]
        if not floats or "out" in kwargs or name in ("backward", "grad"):  # which know tensors by identity
            return None
        # What is written to keeps its type.
        written = name.startswith(("__set", "__i")) or (name.endswith("_") and not name.endswith("__"))
        native = _real(args[0].dtype) if written else max((_real(t.dtype) for t in floats), key=lambda d: d.itemsize)
        if native not in _COMPLEX:
            return None
        for dtype in (native, *(() if written else self._others)):
            if all(t.dtype == widened(t.dtype, dtype) for t in floats):
                continue
            cast = _cast(dtype)
            rest, named = tree_map_only(Tensor, cast, (args[written:], kwargs))
            try:
                result = func(*args[:written], *rest, **named)
            except RuntimeError:
                continue
            if dtype != native:
                self.used[name] = dtype
            return (tree_map_only(Tensor, _cast(native), result),)
        return None


class Exact(Lenient):
    """While active, whatever asks for a floating-point type gets `wide` or its complex counterpart, so that a
    normalization layer which casts to float32 loses nothing; and with ``eps=False`` every eps is set aside.

    Args:
        implicit: eps of normalization functions that were given none.
    """

    def __init__(self, wide: torch.dtype, others: Iterable[torch.dtype], *, eps: bool, implicit: float) -> None:
        super().__init__(others)
        self._wide, self._eps, self._implicit = wide, eps, implicit

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """`func` with its arguments replaced."""
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in _CASTS and len(args) == 1:
            return args[0].to(_COMPLEX[self._wide] if _CASTS[name] else self._wide)
        if name == "type" and len(args) == 2 and not isinstance(args[1], torch.dtype):
            args = (args[0], torch.empty(0).type(args[1]).dtype)
        args = tuple(self._wider(a) for a in args)
        kwargs = {key: self._wider(a) for key, a in (kwargs or {}).items()}
        args, kwargs = spelled_out(name, args, kwargs, self._implicit)
        if not self._eps:
            result = floor(name, args, kwargs)
            if result is not None:
                return result
            args, kwargs = set_aside(name, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _wider(self, value: Any) -> Any:
        return widened(value, self._wide) if isinstance(value, torch.dtype) else value


def _real(dtype: torch.dtype) -> torch.dtype:
    """The type of the real part."""
    return _REAL.get(dtype, dtype)


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(widened(t.dtype, dtype))
