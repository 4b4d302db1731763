"""Small configurations of public architectures, as their packages initialize them.

The modules `architectures_*` have tables of them by name. Packages are imported when an architecture is built.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from typing import Any, NamedTuple

import torch


class Architecture(NamedTuple):
    """What is needed to build one."""

    package: str
    build: Callable[[], tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]


def load(module, *, bare=False):
    """A module, imported when an architecture is built; `bare`: without what its package's __init__ imports, which may need more
    than is installed."""
    package = module.partition(".")[0]
    if bare and package not in sys.modules:
        sys.modules[package] = module_from_spec(find_spec(package))
    return importlib.import_module(module)


def images(size, *, batch=2, channels=3):
    return torch.randn(batch, channels, size, size)


def volumes(size, *, batch=2, channels=1):
    return torch.randn(batch, channels, size, size, size)


def ids(length, *, batch=2, vocabulary=61):
    return torch.randint(3, vocabulary, (batch, length))


def made(package, module, name, inputs, *args, bare=False, **options):
    """An instance of a class with options; `inputs` gives positional or keyword arguments of a call."""

    def build():
        model = getattr(load(module, bare=bare), name)(*args, **options)
        given = inputs()
        return (model, (), given) if isinstance(given, dict) else (model, given, {})

    return Architecture(package, build)
