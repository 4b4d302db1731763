"""Running statistics, which remember the scale of rows that the network itself does not see."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from ..errors import RetractError

__all__ = ["recalibrate"]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Recompute the running statistics of every normalization layer of `model` as averages over all that it sees in `batches`.

    A layer's statistics become the mean of those of its calls, each call counting alike: as
    `torch.optim.swa_utils.update_bn` has it, and for InstanceNorm too. A layer that is called several times in a pass, or
    in some batches only, is averaged over just these calls; a call on no samples is none. One that is never called keeps its
    statistics, with a warning.

    Each batch is the model's input: a tensor, a tuple or list of positional inputs, or a dict of keyword
    inputs. A loader of ``(inputs, targets)`` is passed as ``(x for x, _ in loader)``. The normalization layers
    see the batches in train mode; all else stays in eval mode, so dropout does not disturb them. Modes and
    momenta come out as they went in, and `num_batches_tracked` counts the calls that are averaged.

    Example:
        >>> import torch
        >>> from retract import psi
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
        >>> psi.recalibrate(model, [torch.randn(32, 6) for _ in range(3)])
        3

    Args:
        model: the network, whose parameters stay as they are.
        batches: inputs, in any number.

    Returns:
        The number of batches.

    Raises:
        RetractError: no layer keeps running statistics, `batches` is empty, or a batch makes statistics that are not finite. What
            the model raises is passed on. The statistics are then as before.
    """
    layers = {
        name or "the model itself": _Layer(m)
        for name, m in model.named_modules()
        if isinstance(m, _NormBase) and m.running_mean is not None
    }
    if not layers:
        raise RetractError("no layer of this model keeps running statistics: there is nothing to recalibrate")
    modes = [(module, module.training) for module in model.modules()]
    count = 0
    try:
        model.eval()
        for layer in layers.values():
            layer.begin()
        for batch in batches:
            _call(model, batch)
            _check_finite(layers, count)
            count += 1
        if count == 0:
            raise RetractError("batches is empty (a generator can be walked through only once)")
    except BaseException:
        for layer in layers.values():
            layer.restore()
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for layer in layers.values():
            layer.end()
    idle = [name for name, layer in layers.items() if not layer.calls]
    for name in idle:
        layers[name].restore()
    if idle:
        warnings.warn(
            f"{', '.join(idle)}: not called in {count} batches in eval mode, so the running statistics are those of before",
            stacklevel=3,
        )
    return count


class _Layer:
    """A normalization layer that averages over its calls: the n-th comes in with the share 1/n."""

    def __init__(self, layer: _NormBase) -> None:
        self._layer, self._momentum = layer, layer.momentum
        self._before = {key: buffer.clone() for key, buffer in layer.named_buffers(recurse=False)}
        self._hook: RemovableHandle | None = None
        self.calls = 0

    @property
    def finite(self) -> bool:
        """Whether the statistics are numbers so far."""
        return all(bool(torch.isfinite(buffer).all()) for buffer in self._layer.buffers(recurse=False))

    def _count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        # A call on no samples has no statistics to average. SyncBatchNorm has those of the other processes, which wait for it.
        counts = x.numel() > 0 or isinstance(self._layer, nn.SyncBatchNorm)
        self._layer.train(counts)
        if counts:
            self.calls += 1
            # Not None, which InstanceNorm takes for 0.
            self._layer.momentum = 1.0 / self.calls

    def begin(self) -> None:
        self._hook = self._layer.register_forward_pre_hook(self._count, prepend=True, with_kwargs=True)
        self._layer.train().reset_running_stats()

    def end(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._layer.momentum = self._momentum

    def restore(self) -> None:
        for key, value in self._before.items():
            self._layer.get_buffer(key).copy_(value)


def _check_finite(layers: dict[str, _Layer], number: int) -> None:
    """Raise `RetractError` if batch `number`, counted from 0, has made statistics that are not finite."""
    broken = [name for name, layer in layers.items() if not layer.finite]
    if broken:
        others = f" and of {len(broken) - 1} more layers" if len(broken) > 1 else ""
        raise RetractError(
            f"{broken[0]}: after batch {number}, counted from 0, the running statistics of this layer{others} are not finite, so "
            "those of before are kept. Look for NaN and infinities in that batch and in the weights; what overflows in "
            "half precision does not after model.float()"
        )


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
