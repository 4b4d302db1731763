"""Averages of a network along its training (SWA, EMA), taken on the manifolds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_avg_fn, get_swa_multi_avg_fn

from ..errors import OptionError
from ..manifolds import Euclidean, GeodesicManifold, Manifold, Rows
from ..manifolds.numerics import full_precision
from ..manifolds.parameters.declare import walk
from ..manifolds.parameters.rows import gather, scatter_
from .execution.points import PointSet
from .groups import tensor_geometry
from .options import number

__all__ = ["get_multi_avg_fn"]

Averaging = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def get_multi_avg_fn(model: nn.Module, decay: float | None = None) -> Averaging:
    """The `multi_avg_fn` with which `torch.optim.swa_utils.AveragedModel` averages `model` on its manifolds.

    >>> import torch, retract
    >>> from torch.optim.swa_utils import AveragedModel
    >>> model = torch.nn.Linear(8, 4)
    >>> retract.declare(model, "weight", retract.manifolds.Sphere())
    >>> averaged = AveragedModel(model, multi_avg_fn=retract.optim.get_multi_avg_fn(model))
    >>> averaged.update_parameters(model)  # after every epoch, or with a decay after every step

    The mean of arrays is not a mean of points: it leaves the sphere, and the longest PSI rows dominate it although their norms
    have no meaning. Here the average x moves a share w of the way along the geodesic to the new point y,
    x ← exp(x, w log(x, y)), with w = 1/(n + 1) after n points (`decay` None: SWA, equal weights) or w = 1 − `decay` (EMA). That
    is the inductive mean (Sturm 2003; Salehian et al. 2015 on the sphere); in flat space it is the mean. It does not depend on
    the representatives, and keeps those of the average: PSI rows keep their norm in the first model. Where the logarithm is
    not known (Stiefel, geoopt's manifolds) the new average is the point nearest to x + w (y − x). Undeclared parameters and
    buffers are averaged as by torch, bitwise.

    The running statistics of the average do not match its weights; compute them at the end, with
    `torch.optim.swa_utils.update_bn` or `retract.psi.recalibrate`.

    Args:
        model: the network in training, with its declarations. The parameters of the `AveragedModel` and of the model passed to
            ``update_parameters`` must correspond to its parameters one by one, as `AveragedModel` requires.
        decay: None, or the share in [0, 1] of the average that each update keeps.

    Raises:
        OptionError: a `decay` outside its interval; while averaging, parameters that are not those of `model`, or a
            joint point whose parts differ in dtype or device.
        DeclarationError: the declarations of `model` are not valid (`retract.declared`), also while averaging.
    """
    share = None if decay is None else number("decay", decay)
    if share is not None and not 0.0 <= share <= 1.0:
        raise OptionError(f"decay={decay!r} is outside [0, 1]; it is the share of the average that each update keeps")
    flat = _equal_weights if share is None else get_ema_multi_avg_fn(share)
    list(_curved(model))

    @torch.no_grad()
    @full_precision()
    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        positions = _positions(model, averaged)
        weight = 1.0 / (int(num_averaged) + 1) if share is None else 1.0 - share
        rest = set(range(len(averaged)))
        slices: list[Callable[[], None]] = []
        for points in _curved(model):
            indices = [positions[part] for part in points.parts if part in positions]
            if not indices:
                continue
            if len(indices) < len(points.parts):
                raise OptionError(
                    f"the parts of {points.name} differ in dtype or device, and AveragedModel averages those separately; "
                    "convert them to one dtype, on one device"
                )
            targets = [averaged[i] for i in indices]
            layouts = replace(points, parts=tuple(targets)).layouts()
            x, y = gather(targets, layouts), gather([current[i] for i in indices], layouts)
            between = _between(points.manifold, x, y, weight)
            if points.slices is None:
                rest.difference_update(indices)
                scatter_(between, targets, layouts)
            else:  # what is between the slices is averaged as flat, with all of the parameter
                slices.append(partial(scatter_, between, targets, layouts))
        if rest:
            flat([averaged[i] for i in sorted(rest)], [current[i] for i in sorted(rest)], num_averaged)
        for write in slices:
            write()

    return average


def _between(manifold: Manifold, x: Tensor, y: Tensor, weight: float) -> Tensor:
    """The point a share `weight` of the way from `x` to `y`, (*batch, *event), at the representative of `x`."""
    if isinstance(manifold, GeodesicManifold):
        return manifold.nearest(manifold.exp(x, manifold.log(x, y) * weight))
    return manifold.nearest(x + (y - x) * weight)


def _equal_weights(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
    """torch's average with equal weights; its function for lists raises for integers (counters of batches)."""
    if averaged[0].is_floating_point() or averaged[0].is_complex():
        get_swa_multi_avg_fn()(averaged, current, num_averaged)
    else:
        for mean, value in zip(averaged, current, strict=True):
            mean.copy_(get_swa_avg_fn()(mean, value, num_averaged))


def _curved(model: nn.Module) -> Iterator[PointSet]:
    """Every point set of `model` that is not in flat space."""
    taken: set[Tensor] = set()
    for name, _, parts, declaration, factors in walk(model):
        taken.update(parts)
        if not isinstance(declaration.manifold, Euclidean):
            tensors = tuple(declaration.arrays(name, parts)[0])
            yield PointSet(name, tensors, declaration.manifold, declaration.rows, factors)
    for name, p in model.named_parameters():
        manifold, rows = (Euclidean(0), Rows()) if p in taken else tensor_geometry(p)
        if not isinstance(manifold, Euclidean):
            yield PointSet(name, (p,), manifold, rows)


def _positions(model: nn.Module, averaged: Sequence[Tensor]) -> dict[Tensor, int]:
    """Parameter of `model` → index of its counterpart in `averaged`.

    `AveragedModel` pairs tensors by order, in one list per dtype and device: the parameters, then the buffers if they are
    averaged. An average that is kept on another device has one list per dtype.
    """
    first = averaged[0]
    of_dtype = [
        [tensor for tensor in tensors if tensor.dtype == first.dtype]
        for tensors in (model.parameters(), model.buffers())
    ]
    of_device = [[tensor for tensor in tensors if tensor.device == first.device] for tensors in of_dtype]
    shapes = [tensor.shape for tensor in averaged]
    for parameters, buffers in (of_dtype, of_device):
        for expected in (parameters, parameters + buffers):
            if shapes == [tensor.shape for tensor in expected]:
                return {parameter: i for i, parameter in enumerate(parameters)}
    raise OptionError(
        f"AveragedModel averages {len(averaged)} tensors of {first.dtype} on {first.device} that are not the parameters of "
        "the model passed to get_multi_avg_fn(model); create both from the same model"
    )
