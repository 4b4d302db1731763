"""Time of `psi.find` on a network of ResNet-50's size, batch 8 at 64 × 64."""

import time

import torch
from retract import psi
from torch import nn


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolution, each with BatchNorm, and a shortcut."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        layers, channels = [], inputs
        for outputs, kernel, step in ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)):
            layers += [
                nn.Conv2d(channels, outputs, kernel, step, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            channels = outputs
        self.branch, self.shortcut = nn.Sequential(*layers[:-1]), nn.Identity()
        if inputs != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        """Sum of both ways, through ReLU."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet50():
    """The network, freshly initialized."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def main():
    """Print the report and the seconds it took."""
    model, x = resnet50(), torch.randn(8, 3, 64, 64)
    start = time.perf_counter()
    report = psi.find(model, x)
    seconds = time.perf_counter() - start
    print(report)
    print(f"{sum(f.granularity == 'row' and len(f.shape) == 4 for f in report)} convolutions per row; {seconds:.1f} s")


if __name__ == "__main__":
    main()
