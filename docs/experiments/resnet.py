"""The CIFAR ResNets of He et al., Deep Residual Learning for Image Recognition (CVPR 2016), Section 4.2."""

from __future__ import annotations

from itertools import pairwise

from retract.errors import RetractError
from torch import Tensor, nn

__all__ = ["Block", "cifar_resnet"]


class Block(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm, and past them the input itself.

    Where the width grows from `before`, the input is taken at every other pixel and filled up with zeros: option A, without
    parameters.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) to (N, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride == 2:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return (x + y).relu()


def cifar_resnet(depth: int, classes: int) -> nn.Sequential:
    """(N, 3, 32, 32) to (N, classes): a convolution, three times `n` blocks of 16, 32 and 64 channels, and a linear layer, for
    depth = 6n + 2. Convolutions start as He et al. initialise them (fan out, N(0, 2 / (9 · channels out))).

    Raises `RetractError` for another depth.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise RetractError(f"depth {depth}: these networks have 6n + 2 layers, as 20, 32, 44, 56")
    widths = [16] * (n + 1) + [32] * n + [64] * n
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(Block(before, width) for before, width in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
