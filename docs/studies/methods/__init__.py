"""The methods that are compared, a file each: `TITLE`, `KNOBS` with the centre of the grid of each knob, and `optimizers`.

``optimizers(network, example, **knobs)`` returns the optimizers of a new network, which is in train mode; `example` is a batch of
its inputs. The knobs are ``lr``, the rate of the weights in which the methods of a study differ, ``rest``, that of all other
parameters that are trained, where the method has weight decay, ``decay``, that of the former, and where it has two rates for the factors of an
adapter, ``ratio``, that of the second to the first.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from retract.errors import RetractError
from torch.optim import Optimizer

from studies import protocol

__all__ = ["Method", "load", "names"]


@dataclass(frozen=True)
class Method:
    """A method and its name, that of its file."""

    name: str
    title: str
    knobs: dict[str, float]
    optimizers: Callable[..., list[Optimizer]]


def names() -> list[str]:
    """Of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Method:
    """The method of the file `name`, with its knobs in the order of `protocol.FACTORS`.

    Raises `RetractError` if there is no such file, if its knobs have no grid, and if `lr` is not among them.
    """
    if name not in names():
        raise RetractError(f"there is no method {name} in docs/studies/methods: these are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    if unknown := module.KNOBS.keys() - protocol.FACTORS.keys():
        raise RetractError(
            f"{name} has the knobs {', '.join(sorted(unknown))}, for which there is no grid: knobs are "
            f"{', '.join(protocol.FACTORS)}; write a constant into the file, or add the factor of the grid to protocol.FACTORS"
        )
    if "lr" not in module.KNOBS:
        raise RetractError(
            f"{name} has no knob lr, the rate of the weights in which methods differ: add it to its KNOBS"
        )
    knobs = {knob: module.KNOBS[knob] for knob in protocol.FACTORS if knob in module.KNOBS}
    return Method(name, module.TITLE, knobs, module.optimizers)
