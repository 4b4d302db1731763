"""Shapes of the weights of four networks, and timing that compares within one run."""

import statistics
import time

import torch


def resnet56():
    """The 55 convolutions of a CIFAR ResNet-56."""
    shapes = [(16, 3, 3, 3)]
    for before, width in ((16, 16), (16, 32), (32, 64)):
        shapes += [(width, before, 3, 3)] + [(width, width, 3, 3)] * 17
    return shapes


def resnet50():
    """The 53 convolutions of torchvision's ResNet-50."""
    shapes, channels = [(64, 3, 7, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return shapes


def transformer(width, layers):
    """The matrices of a transformer's blocks: projections of attention and of a feed-forward four times as wide."""
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers


LISTS = {
    "ResNet-56": resnet56(),
    "ResNet-50": resnet50(),
    "ViT-B": [(768, 3, 16, 16), *transformer(768, 12)],
    "transformer-1B": transformer(2048, 20),
}


def tensors(shapes, device="cpu", dtype=torch.float32):
    """Random weights with unit rows, and small gradients."""
    weights = [torch.nn.functional.normalize(torch.randn(s, device=device).flatten(1), dim=1).view(s) for s in shapes]
    return [w.to(dtype) for w in weights], [1e-3 * torch.randn(s, device=device, dtype=dtype) for s in shapes]


def interleaved(work, rounds, device="cpu", warmup=3):
    """Seconds of each callable in `work`, a dict, one after the other in every round: {name: [seconds]}."""
    times = {name: [] for name in work}
    for turn in range(rounds + warmup):
        for name, step in work.items():
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def median(values):
    """The median, in milliseconds."""
    return 1e3 * statistics.median(values)


def spread(values):
    """Half the distance between the quartiles, in milliseconds."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1e3 * (high - low) / 2
