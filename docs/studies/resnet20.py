"""ResNet-20: the most accurate method of the BatchNorm study against SGD with decay, on a network that others measure too."""

from __future__ import annotations

import torch
from experiments.resnet import cifar_resnet
from torch import nn

from .batchnorm import BatchNorm
from .loop import FollowUp, RateSweep, Study

__all__ = ["ResNet20", "ResNet20LR", "ResNet20Rates"]


class _OnResNet20(BatchNorm):
    methods: tuple[str, ...] = ("sgd_decay", "muon_decay")
    pairs: tuple[tuple[str, str], ...] = ()

    def network(self) -> nn.Module:
        """The network of He et al. for CIFAR-10: 269,722 parameters, 267,696 of them in front of BatchNorm."""
        return cifar_resnet(20, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ResNet20Rates(_OnResNet20):
    """A sweep of `lr` and `rest` in runs of four epochs, about what was chosen for the small network."""

    name = "resnet20-rates"
    title = "ResNet-20, four epochs"
    budget = 7
    swept: int | None = 2
    after: type[Study] | None = BatchNorm
    steps = 4 * 352
    """Four epochs of 351, rounded up to a multiple of 16."""


class ResNet20LR(RateSweep, _OnResNet20):
    """A sweep of `lr` alone in runs of twenty epochs, about what was chosen so."""

    name = "resnet20-lr"
    title = "ResNet-20, sweep of twenty epochs"
    budget = 5
    after: type[Study] | None = ResNet20Rates
    points = 20
    steps = 20 * 351


class ResNet20(FollowUp, _OnResNet20):
    """Three fresh seeds at the rates that were found so."""

    name = "resnet20"
    title = "ResNet-20, twenty epochs"
    after: type[Study] | None = ResNet20LR
    seeds = 3
    points = ResNet20LR.points
    steps = ResNet20LR.steps
