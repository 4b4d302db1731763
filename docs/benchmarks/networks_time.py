"""Images per second of small networks for CIFAR-10, forward and backward on one core, which is why docs/studies takes the one it takes.

    python docs/benchmarks/networks_time.py

Batches of 128 random images, channels_last, float32; medians of 60 passes that alternate between the networks, in processor time.
"""

import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import torch
from torch import nn

PATCHES = {"16, 32, 48, 48": (16, 32, 48, 48), "32, 32, 48, 48": (32, 32, 48, 48), "32, 32, 64, 64": (32, 32, 64, 64)}


def layers(*shapes):
    """Convolutions without bias, each with BatchNorm and ReLU, from (channels in, channels out, size, stride, padding)."""
    for before, width, size, stride, padding in shapes:
        yield from (nn.Conv2d(before, width, size, stride, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def network(*shapes):
    """A classifier of ten classes that ends in the mean over all pixels."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shapes[-1][1], 10)
    return nn.Sequential(*layers(*shapes), *head).to(memory_format=torch.channels_last)


def main():
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {
        f"6 × 6 with stride 4 to {name} channels": network(
            (3, a, 6, 4, 1), (a, b, 3, 1, 1), (b, c, 3, 2, 1), (c, d, 3, 1, 1)
        )
        for name, (a, b, c, d) in PATCHES.items()
    }
    found["4 × 4 with stride 2 to 16, 32, 32, 64, 64 channels"] = network(
        (3, 16, 4, 2, 1), (16, 32, 3, 2, 1), (32, 32, 3, 1, 1), (32, 64, 3, 2, 1), (64, 64, 3, 1, 1)
    )
    x = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (128,))
    seconds = {name: [] for name in found}
    for _ in range(60):
        for name, model in found.items():
            start = time.process_time()
            nn.functional.cross_entropy(model(x), y).backward()
            seconds[name].append(time.process_time() - start)
    for name, model in found.items():
        count = sum(p.numel() for p in model.parameters())
        print(f"| {name} | {128 / statistics.median(seconds[name]):,.0f} | {count:,} |")


if __name__ == "__main__":
    main()
