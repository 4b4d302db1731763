"""Running statistics, which remember the scale of rows that the network itself does not see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..manifolds.errors import RetractError

__all__ = ["recalibrate"]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Recompute the running statistics of every normalization layer of `model` as averages over `batches`.

    Each batch is the model's input: a tensor, a tuple or list of positional inputs, or a dict of keyword
    inputs. A loader of ``(inputs, targets)`` is passed as ``(x for x, _ in loader)``. The normalization layers
    see the batches in train mode; all else stays in eval mode, so dropout does not disturb them. Modes and
    momenta come out as they went in. A layer that the forward pass does not call in eval mode keeps its
    statistics. Returns the number of batches.

    Raises `RetractError` if no layer keeps running statistics or `batches` is empty, and passes on what the
    model raises; the statistics are then as before.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not layers:
        raise RetractError("no layer of this model keeps running statistics: there is nothing to recalibrate")
    modes = [(module, module.training) for module in model.modules()]
    before = [
        (layer, layer.momentum, {key: b.clone() for key, b in layer.named_buffers(recurse=False)}) for layer in layers
    ]
    count = 0
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for batch in batches:
            count += 1
            for layer in layers:
                layer.momentum = 1.0 / count
            _call(model, batch)
        if count == 0:
            raise RetractError("batches is empty (a generator can be walked through only once)")
        for layer, _, buffers in before:
            if _fresh(layer):  # not called in eval mode
                _restore(layer, buffers)
    except BaseException:
        for layer, _, buffers in before:
            _restore(layer, buffers)
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum, _ in before:
            layer.momentum = momentum
    return count


def _fresh(layer: nn.Module) -> bool:
    """Whether running statistics are as `reset_running_stats` leaves them."""
    return not layer.get_buffer("running_mean").any() and bool((layer.get_buffer("running_var") == 1).all())


def _restore(layer: nn.Module, buffers: dict[str, Tensor]) -> None:
    for key, value in buffers.items():
        layer.get_buffer(key).copy_(value)


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, dict):
        model(**batch)
    elif isinstance(batch, tuple | list):
        try:
            model(*batch)
        except TypeError as error:
            raise TypeError(f"{error}; a loader of (inputs, targets) is passed as (x for x, _ in loader)") from error
    else:
        model(batch)
