"""Finding the tensors in the outputs of a model, of any type, and in what its modules keep."""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES

__all__ = ["Leaves", "held"]

# What can hold no tensor, and no number that depends on one.
_PLAIN = (
    type(None),
    str,
    bytes,
    enum.Enum,
    range,
    slice,
    type,
    types.ModuleType,
    weakref.ReferenceType,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
)


class Leaves:
    """What is found in a nested value: its tensors, numbers and arrays among them, and the types that were not looked at.

    It looks into registered pytree nodes, tuples, lists, sets, mappings, dataclasses, distributions, and the attributes of any other
    object; not into modules, functions, iterators, nor objects without attributes. What holds itself is looked at once.
    """

    def __init__(self, value: Any) -> None:
        self.tensors: list[Tensor] = []
        self.opaque: dict[str, None] = {}
        """Names of types, in the order met."""
        self._seen: dict[int, Any] = {}
        self._walk(value)

    def _walk(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            self.tensors.append(torch.from_numpy(np.array(value)))
        elif isinstance(value, bool | int | float | complex) and not isinstance(value, enum.Enum):
            self.tensors.append(
                torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)
            )
        elif not isinstance(value, _PLAIN) and id(value) not in self._seen:
            self._seen[id(value)] = value  # kept, so that no other object gets its id
            parts = _parts(value)
            if parts is None:
                self.opaque[f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")] = None
            for part in parts or ():
                self._walk(part)


def _parts(value: Any) -> Iterable[Any] | None:
    """What `value` consists of; None if that cannot be told."""
    if isinstance(value, nn.Module | types.FunctionType | types.MethodType | functools.partial):
        return None
    if type(value) in SUPPORTED_NODES:
        return SUPPORTED_NODES[type(value)].flatten_fn(value)[0]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, Sequence | Set):
        return value
    return _attributes(value)


def _attributes(value: Any) -> list[Any] | None:
    """The attributes of an object; None if it can have none."""
    slots = [kind.__dict__["__slots__"] for kind in type(value).__mro__ if "__slots__" in kind.__dict__]
    if not hasattr(value, "__dict__") and not slots:
        return None
    names = [name for slot in slots for name in ([slot] if isinstance(slot, str) else slot)]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in names)]


def held(value: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """The tensors in `value`, besides what is in `seen`, by id, where all that is met is put down.

    It looks into containers of Python and into attributes, and runs no code of the objects: what a data set holds is not loaded.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (types.FunctionType, *_PLAIN)) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset | deque):
            waiting += item
        else:
            waiting += _attributes(item) or ()
