"""Averages of models, SWA and EMA, in which every point counts by where it is and not by how it is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn, get_swa_avg_fn

from ..manifolds import Declaration, Euclidean, GeodesicManifold
from ..manifolds.declare import walk
from ..manifolds.errors import OptionError, StateError
from ..manifolds.numerics import full_precision
from ..manifolds.rows import gather, scatter_

__all__ = ["averaging"]

Averaging = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def averaging(model: nn.Module, decay: float | None = None) -> Averaging:
    """The function that averages models declared like `model`, for `torch.optim.swa_utils.AveragedModel`:

        averaged = AveragedModel(model, multi_avg_fn=averaging(model))

    torch's own functions average arrays. Rows of a scale-invariant weight then count by their norms, which mean nothing,
    and unit vectors leave the sphere. Here the averaged point moves by the share w of the way to the model's:

    - x ← exp(x, w log(x, y)) where both maps are known. This is the inductive mean (Sturm 2003), which on flat
      space is the mean; it is the same whatever representatives `x` and `y` are stored as, and keeps that of `x`: rows on
      PSI keep the norms of the model that was averaged first, lines need no common sign.
    - x ← nearest(x + w (y − x)) on other manifolds.
    - On flat space, and for buffers, torch's `get_swa_avg_fn` or `get_ema_avg_fn`.

    Running statistics belong to one set of weights and not to an average: call `torch.optim.swa_utils.update_bn` or
    `retract.psi.recalibrate` before the averaged model is evaluated.

    Args:
        model: the network that is averaged; its declarations are read at every call.
        decay: None for equal weights, w = 1/(n + 1) after n models; a number in [0, 1] for an exponential average with
            w = 1 − decay.

    The result takes the averaged parameters (written in place), those of the model, and n, as torch's do. It raises
    `StateError` for parameters that are not those of `model`, and `DeclarationError` as `retract.declared` does.

    Raises `OptionError` for a `decay` outside its interval.
    """
    if decay is not None and not 0.0 <= decay <= 1.0:
        raise OptionError(f"decay={decay!r} is outside [0, 1]; None averages with equal weights")
    flat = get_swa_avg_fn() if decay is None else get_ema_avg_fn(decay)

    @torch.no_grad()
    @full_precision()
    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        def share(way: Tensor) -> Tensor:
            return way / (num_averaged + 1) if decay is None else way * (1.0 - decay)

        place = {id(tensor): index for index, tensor in enumerate(_those_of(model, averaged))}
        curved = set()
        for names, parts, declaration in walk(model):
            its = [place[id(part)] for part in parts if id(part) in place]
            if not its or isinstance(declaration.manifold, Euclidean):
                continue
            if len(its) < len(parts):
                raise StateError(
                    f"{', '.join(names)} form joint points, but differ in dtype or device, by which AveragedModel groups "
                    "parameters; convert them to one dtype on one device"
                )
            curved.update(its)
            _average(declaration, [averaged[i] for i in its], [current[i] for i in its], share)
        for index, (mean, new) in enumerate(zip(averaged, current, strict=True)):
            if index not in curved:
                mean.copy_(flat(mean, new, num_averaged))

    return average


def _average(
    declaration: Declaration,
    averaged: Sequence[Tensor],
    current: Sequence[Tensor],
    share: Callable[[Tensor], Tensor],
) -> None:
    manifold = declaration.manifold
    layouts = [declaration.rows.layout(part, manifold.event_ndim) for part in averaged]
    x, y = gather(averaged, layouts), gather(current, layouts)
    mean = manifold.exp(x, share(manifold.log(x, y))) if isinstance(manifold, GeodesicManifold) else x + share(y - x)
    scatter_(manifold.nearest(mean), averaged, layouts)


def _those_of(model: nn.Module, group: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of `model` that `group` was made from, in order.

    AveragedModel copies the model, on a device of its own if asked, and hands over parameters, and buffers if asked,
    in their order but one group per device and dtype.
    """
    dtype, device, shapes = group[0].dtype, group[0].device, [tensor.shape for tensor in group]
    for tensors in (list(model.parameters()), list(chain(model.parameters(), model.buffers()))):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        for its in ([tensor for tensor in alike if tensor.device == device], alike):
            if [tensor.shape for tensor in its] == shapes:
                return its
    raise StateError(
        f"these {len(group)} tensors in {dtype} on {device} are not the parameters of the model that averaging was called with; "
        "call it with the model that AveragedModel copies"
    )
