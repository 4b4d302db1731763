"""Averages of a network along its training (SWA, EMA), taken on the manifolds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_avg_fn, get_swa_multi_avg_fn

from ..errors import OptionError
from ..manifolds import Euclidean, GeodesicManifold, Manifold, Rows
from ..manifolds.numerics import full_precision
from ..manifolds.parameters.declare import walk
from ..manifolds.parameters.rows import gather, scatter_
from .execution.points import PointSet
from .groups import own_geometry
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

    The mean of arrays is no mean of points: it leaves the sphere, and of PSI rows, whose norm means nothing, the long
    ones decide it. Here a share w of the way along the geodesic from the average x to the new point y is walked,
    x ← exp(x, w log(x, y)), with w = 1/(n + 1) after n points (`decay` None: SWA, equal weights) or w = 1 − `decay`
    (EMA). That is the inductive mean (Sturm 2003; Salehian et al. 2015 on the sphere), in flat space
    the mean itself. It does not depend on the representatives, and on quotients keeps the average's own: PSI rows
    the norm they had in the first model. Where the logarithm is not known (Stiefel, geoopt's manifolds) it is the
    point nearest to x + w (y − x). Undeclared parameters, and buffers, are averaged as torch does, bitwise.

    Running statistics are not those of the averaged weights; compute them when all is averaged, with
    `torch.optim.swa_utils.update_bn` or `retract.psi.recalibrate`.

    Args:
        model: the network that is trained, declarations and all. Its copy in the `AveragedModel`, and what is given to
            ``update_parameters``, correspond to it parameter by parameter, as `AveragedModel` itself has it.
        decay: None, or the share in [0, 1] of the average that each update keeps.

    Raises:
        OptionError: a `decay` outside its interval; while averaging, parameters that are not those of `model`, or a
            joint point whose parts differ in dtype or device.
        DeclarationError: as `retract.declared`, also while averaging.
    """
    keep = None if decay is None else number("decay", decay)
    if keep is not None and not 0.0 <= keep <= 1.0:
        raise OptionError(f"decay={decay!r} is outside [0, 1]; it is the share of the average that each update keeps")
    flat = _equal_weights if keep is None else get_ema_multi_avg_fn(keep)
    list(_curved(model))

    @torch.no_grad()
    @full_precision()
    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        place = _places(model, averaged)
        weight = 1.0 / (int(num_averaged) + 1) if keep is None else 1.0 - keep
        rest = set(range(len(averaged)))
        for points in _curved(model):
            its = [place[part] for part in points.parts if part in place]
            if not its:
                continue
            if len(its) < len(points.parts):
                raise OptionError(
                    f"the parts of {points.name} differ in dtype or device, and AveragedModel hands them over one by one; "
                    "convert or move them alike"
                )
            rest.difference_update(its)
            targets = [averaged[i] for i in its]
            layouts = [points.rows.layout(target, points.manifold.event_ndim) for target in targets]
            x, y = gather(targets, layouts), gather([current[i] for i in its], layouts)
            scatter_(_between(points.manifold, x, y, weight), targets, layouts)
        if rest:
            flat([averaged[i] for i in sorted(rest)], [current[i] for i in sorted(rest)], num_averaged)

    return average


def _between(manifold: Manifold, x: Tensor, y: Tensor, weight: float) -> Tensor:
    """The point a share `weight` of the way from `x` to `y`, (*batch, *event), at x's representative."""
    if isinstance(manifold, GeodesicManifold):
        return manifold.nearest(manifold.exp(x, manifold.log(x, y) * weight))
    return manifold.nearest(x + (y - x) * weight)


def _equal_weights(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
    """torch's equal weights; its function for lists divides integers (counters of batches), which raises."""
    if averaged[0].is_floating_point() or averaged[0].is_complex():
        get_swa_multi_avg_fn()(averaged, current, num_averaged)
    else:
        for mine, its in zip(averaged, current, strict=True):
            mine.copy_(get_swa_avg_fn()(mine, its, num_averaged))


def _curved(model: nn.Module) -> Iterator[PointSet]:
    """Every point set of `model` that does not lie in flat space, as an optimizer would take it."""
    taken: set[Tensor] = set()
    for names, parts, declaration in walk(model):
        taken.update(parts)
        if not isinstance(declaration.manifold, Euclidean):
            yield PointSet(names[0], parts, declaration.manifold, declaration.rows)
    for name, p in model.named_parameters():
        manifold, rows = (Euclidean(0), Rows()) if p in taken else own_geometry(p)
        if not isinstance(manifold, Euclidean):
            yield PointSet(name, (p,), manifold, rows)


def _places(model: nn.Module, averaged: Sequence[Tensor]) -> dict[Tensor, int]:
    """Where in `averaged` each parameter of `model` has its counterpart.

    `AveragedModel` pairs tensors in their order, and hands them over in one list per dtype and device: all parameters
    of it, then perhaps all buffers. A copy on a device of its own has one list per dtype.
    """
    first = averaged[0]
    alike = [
        [tensor for tensor in tensors if tensor.dtype == first.dtype]
        for tensors in (model.parameters(), model.buffers())
    ]
    here = [[tensor for tensor in tensors if tensor.device == first.device] for tensors in alike]
    shapes = [tensor.shape for tensor in averaged]
    for parameters, buffers in (alike, here):
        for expected in (parameters, parameters + buffers):
            if shapes == [tensor.shape for tensor in expected]:
                return {parameter: i for i, parameter in enumerate(parameters)}
    raise OptionError(
        f"AveragedModel hands over {len(averaged)} tensors of {first.dtype} on {first.device} that are not the parameters of "
        "the model given to get_multi_avg_fn(model); make both from the same model"
    )
