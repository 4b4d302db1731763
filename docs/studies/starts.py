"""The network of the BatchNorm study from other starts, which are the same function: its scale-invariant weights rescaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .batchnorm import BatchNorm
from .loop import FollowUp, Study

__all__ = ["SCATTERED", "STARTS", "scaled"]

SCATTERED = 4.0
"""Rows are multiplied by 2^u with u uniform between minus and plus this."""


def scaled(network: nn.Module, factor: float | None) -> nn.Module:
    """`network` with the weights of its convolutions times `factor`, or, where that is None, with their rows scattered.

    The eps of BatchNorm becomes smaller with the square of the least factor, so that it is felt no more than before.
    """
    least = min(1.0, 2.0**-SCATTERED if factor is None else factor)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps *= least**2
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                layer.weight.mul_(_scattering(layer.weight) if factor is None else factor)
    return network


def _scattering(weight: Tensor) -> Tensor:
    """A factor per row, from torch's global generator."""
    return torch.exp2(SCATTERED * (2.0 * torch.rand(len(weight)) - 1.0)).view(-1, *[1] * (weight.ndim - 1))


class _Start(FollowUp, BatchNorm):
    """The settings that the sweep of the BatchNorm study has chosen, from another start."""

    after: type[Study] | None = BatchNorm
    seeds = 3
    factor: float | None

    def network(self) -> nn.Module:
        """That of the BatchNorm study, rescaled."""
        return scaled(super().network(), self.factor)


class _Tenth(_Start):
    name, title, factor = "start_tenth", "Initialization × 0.1", 0.1


class _Tenfold(_Start):
    name, title, factor = "start_tenfold", "Initialization × 10", 10.0


class _Scattered(_Start):
    name, title, factor = "start_scattered", "Rows × 2^±4", None


STARTS: tuple[type[_Start], ...] = (_Tenth, _Tenfold, _Scattered)
