"""Clipping of the whole gradient by its length in the metric."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GradientError, OptionError
from ..manifolds import numerics
from ..manifolds.parameters.rows import gather
from .optimizer import RiemannianOptimizer

__all__ = ["clip_riemannian_norm_"]


@torch.no_grad()
@numerics.full_precision()
def clip_riemannian_norm_(optimizer: RiemannianOptimizer, max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients of `optimizer` in place so that their joint length in the metric is at most `max_norm`.

    The length is √Σ ‖Riemannian gradient‖² over all points, which for PSI rows does not depend on the representative; the
    length that `torch.nn.utils.clip_grad_norm_` measures does.

    Example:
        >>> import torch, retract
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))  # a row of norm 5, with a gradient that is orthogonal to it
        >>> optimizer = retract.optim.PSISGD([{"params": [w], "manifold": retract.manifolds.PSI()}])
        >>> w.grad = torch.tensor([[-0.8, 0.6]])
        >>> float(retract.optim.clip_riemannian_norm_(optimizer, max_norm=1.0))
        5.0

    Args:
        optimizer: an optimizer of this library.
        max_norm: the largest admitted length.
        error_if_nonfinite: whether a length that is not finite raises.

    Returns:
        The length before clipping, a scalar tensor.

    Raises:
        GradientError: a length that is not finite, if `error_if_nonfinite`.
        OptionError: an optimizer of another library, such as the wrapper of a framework.
    """
    if not isinstance(optimizer, RiemannianOptimizer):
        raise OptionError(
            f"{type(optimizer).__name__} has no manifolds, so there is no metric to clip in; pass the optimizer that it "
            "wraps (with Accelerate optimizer.optimizer), or clip with torch.nn.utils.clip_grad_norm_"
        )
    lengths, grads = [], dict[Tensor, None]()
    for points, egrads in optimizer._gradients():
        layouts = points.layouts()
        x = gather(points.parts, layouts)
        gradient = points.manifold.riemannian_gradient(x, gather(egrads, layouts))
        lengths.append(numerics.norm(points.manifold.norm(x, gradient).flatten(), 1))
        grads.update(dict.fromkeys(egrads))  # a parameter may be in several sets of slices
    if not lengths:
        return torch.tensor(0.0)
    total = numerics.norm(torch.cat([length.to(lengths[0].device) for length in lengths]), 1).squeeze()
    if error_if_nonfinite and not torch.isfinite(total):
        raise GradientError(f"the length of the gradient is {float(total)}; pass error_if_nonfinite=False to continue")
    factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for grad in grads:
        grad.mul_(factor.to(grad.device, grad.dtype))
    return total
