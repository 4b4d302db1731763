"""The network of the BatchNorm study without BatchNorm, whose units may be rescaled against the next layer."""

from __future__ import annotations

from torch import nn

from .batchnorm import BatchNorm, convolutional

__all__ = ["ReLUStudy"]


class ReLUStudy(BatchNorm):
    """CIFAR-10 in memory, from the files in `folder`."""

    name = "relu"
    title = "ReLU networks"
    page = "relu"
    methods: tuple[str, ...] = ("sgd_decay", "adamw_decay", "sgd_plain", "units_sgd", "units_adam", "muon_decay")
    pairs: tuple[tuple[str, str], ...] = (("units_sgd", "sgd_plain"), ("units_adam", "adamw_decay"))

    def network(self) -> nn.Module:
        """The same convolutions with biases, and ReLU: 41,530 parameters, 41,040 of them in the convolutions."""
        return convolutional(normalized=False)
