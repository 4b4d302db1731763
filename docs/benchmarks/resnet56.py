"""A CIFAR ResNet-56, and how much of its training step an optimizer takes."""

import time

import torch
from retract import declare, param_groups
from retract.manifolds import PSI
from retract.optim import PSISGD
from torch import nn
from weights import median, spread


class Block(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm, around which the input goes by subsampling and padding."""

    def __init__(self, before, width):
        super().__init__()
        self.stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride == 2:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return (x + y).relu()


def resnet56():
    """He et al. (2016), for 32 × 32 images."""
    blocks = [
        Block(before, width) for start, width in ((16, 16), (16, 32), (32, 64)) for before in (start, *[width] * 8)
    ]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def share_of_training(steps=6, batch=128):
    """A sentence: milliseconds of torch's SGD and of PSI-SGDM inside a training step, interleaved."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    runs = {}
    for name in ("torch SGD, default", "torch SGD, fused", "PSISGD"):
        model = resnet56()
        if name == "PSISGD":
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    declare(module, "weight", PSI())
            optimizer = PSISGD(param_groups(model), lr=0.01, momentum=0.9)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=name.endswith("fused") or None)
        runs[name] = model, optimizer, [], []
    for turn in range(steps + 1):
        for model, optimizer, of_step, of_training in runs.values():
            start = time.perf_counter()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            middle = time.perf_counter()
            optimizer.step()
            if turn:
                of_step.append(time.perf_counter() - middle)
                of_training.append(time.perf_counter() - start)
    parts = [
        f"{name} {median(of_step):.2f} ± {spread(of_step):.2f} ms of {median(of_training):.0f}"
        for name, (_, _, of_step, of_training) in runs.items()
    ]
    return f"The optimizer in a step of ResNet-56 at batch {batch}, all parameters: {'; '.join(parts)}."


if __name__ == "__main__":
    print(share_of_training())
