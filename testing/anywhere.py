"""Pickling and evaluating manifolds whose class cannot be imported.

A manifold may be defined in a function, in a notebook or by `exec`, so no law may depend on importing its class.
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from types import ModuleType
from typing import Any

from .. import manifolds
from ..manifolds import Manifold

__all__ = ["evaluated", "importable", "pickled"]


def pickled(manifold: Manifold) -> Any:
    """`manifold` pickled and unpickled, without importing its class."""
    kind, buffer = type(manifold), io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> str | None:
            return "the manifold's class" if thing is kind else None

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, _: Any) -> Any:
            return kind

    Pickler(buffer).dump(manifold)
    buffer.seek(0)
    return Unpickler(buffer).load()


def evaluated(manifold: Manifold) -> Any:
    """The value of ``repr(manifold)`` with the names of the library, of the module of its class and of the classes of fields."""
    kind = type(manifold)
    classes = {type(value).__name__: type(value) for value in (*getattr(manifold, "__dict__", {}).values(), manifold)}
    names = {**vars(manifolds), **getattr(sys.modules.get(kind.__module__), "__dict__", {}), **classes}
    return eval(repr(manifold).replace(kind.__qualname__, kind.__name__), names)


@contextmanager
def importable(manifold: Manifold) -> Iterator[None]:
    """A context in which `torch.compile` can import the modules of the manifold's methods, whose globals it looks up."""
    members = [inspect.unwrap(m) for kind in type(manifold).__mro__ for m in vars(kind).values() if callable(m)]
    spaces = {id(names): names for names in (getattr(m, "__globals__", {}) for m in members) if "__name__" in names}
    with ExitStack() as stack:
        for names in spaces.values():
            if getattr(sys.modules.get(names["__name__"]), "__dict__", None) is not names:
                stack.enter_context(_renamed(names))
        yield


@contextmanager
def _renamed(names: dict[str, Any]) -> Iterator[None]:
    """A context with a module of these globals, under a new name, since the compiler caches imports."""
    before, name = names["__name__"], f"retract_testing_{next(_numbers)}"
    names["__name__"], sys.modules[name] = name, ModuleType(name)
    vars(sys.modules[name]).update(names)
    try:
        yield
    finally:
        names["__name__"] = before
        del sys.modules[name]


_numbers = count()
