"""Perturbations of a model's weights and inputs for the passes of a probe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["disturb", "vary"]

# Invariance holds for all weights or for none, so it is measured next to the weights rather than at them: a bias, a
# residual branch or a weight of a normalization layer that is zero at initialization would hide what it does.
WEIGHT_NOISE = 0.1
SMALL_WEIGHT = 0.05
"""Root mean square below which a weight of one axis counts as one that starts near zero, such as LayerScale."""
INPUT_NOISE = 0.1


def disturb(w: Tensor, beside: Iterable[Tensor], generator: torch.Generator) -> None:
    """Add a little noise to `w` in place; `beside` are the other weights of its module.

    Its standard deviation is a tenth of a row's own size; but a vector, such as a bias, is made as large as what it is
    added to or multiplied with, lest it be too small to show.
    """
    if w.is_complex():
        return disturb(torch.view_as_real(w), (), generator)
    w.add_(_normal(w, generator).mul_(_size(w, [_row_norms(other).flatten() for other in beside if other.ndim > 1])))


def _size(w: Tensor, beside: list[Tensor]) -> Tensor | float:
    size = _rms(w)
    if w.numel() > max(w.shape, default=1):
        rows = WEIGHT_NOISE * _row_norms(w) / w[0].numel() ** 0.5
        return torch.where(rows > 0, rows, WEIGHT_NOISE * size or 1.0)
    if beside and w.ndim == 1:
        sizes = [other if other.shape == w.shape else other.square().mean().sqrt() for other in beside]
        largest = torch.stack(torch.broadcast_tensors(*sizes)).amax(0)
        return torch.where(largest > 0, largest.clamp(min=WEIGHT_NOISE * size), size or 1.0)
    return WEIGHT_NOISE * size if size > SMALL_WEIGHT else 1.0


def vary(t: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Input `number` made of `t`: from 1 on, floats brought to unit size and given noise, and batches of integers (token ids)
    shuffled. Number 0, masks, lengths and offsets are as they were."""
    if number == 0 or t.layout != torch.strided or t.numel() == 0 or t.is_quantized:
        return t
    if t.is_complex():
        return torch.view_as_complex(vary(torch.view_as_real(t), number, generator))
    if t.is_floating_point() and t.element_size() == 1:
        return t
    if t.is_floating_point():
        flags = bool(((t == 0) | (t == 1)).all())
        if flags or not torch.isfinite(t).all():
            return t
        return t / (_rms(t) or 1.0) + INPUT_NOISE * number * _normal(t, generator)
    if t.ndim > 1 and t.dtype != torch.bool:
        return t[torch.randperm(t.shape[0], generator=generator).to(t.device)]
    return t


def _normal(t: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, the same on all devices."""
    return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype)


def _rms(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.float64)) / max(1, t.numel()) ** 0.5


def _row_norms(t: Tensor) -> Tensor:
    """Norm of each row along dim 0, (rows, 1…)."""
    if t.ndim < 2:
        return t.abs().double()
    return torch.linalg.vector_norm(t, dim=tuple(range(1, t.ndim)), keepdim=True, dtype=torch.float64)
