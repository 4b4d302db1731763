"""Median time of one optimizer step on the conv weights of two networks, all optimizers interleaved in one run."""

import statistics
import time

import torch
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim import PSISGD, SGDG, RiemannianSGD

RESNET56 = [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 18 + [(32, 16, 3, 3)] + [(32, 32, 3, 3)] * 17 + [(64, 32, 3, 3)] + [(64, 64, 3, 3)] * 17  # fmt: skip


def resnet50():
    """Shapes of the convolutions of torchvision's ResNet-50."""
    shapes, channels = [(64, 3, 7, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return shapes


def group(shapes, **geometry):
    """One group of random weights with unit rows, and gradients."""
    rows = [torch.nn.functional.normalize(torch.randn(s).flatten(1), dim=1).view(s) for s in shapes]
    params = [torch.nn.Parameter(w) for w in rows]
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    return [{"params": params, **geometry}]


def main():
    """Print one table per network."""
    for name, shapes, rounds in (("CIFAR ResNet-56", RESNET56, 40), ("ResNet-50", resnet50(), 8)):
        optimizers = {
            "torch SGD": torch.optim.SGD(group(shapes), lr=1e-3, momentum=0.9),
            "torch SGD, fused": torch.optim.SGD(group(shapes), lr=1e-3, momentum=0.9, fused=True),
            "RiemannianSGD, Euclidean": RiemannianSGD(group(shapes), lr=1e-3, momentum=0.9),
            "PSISGD, no momentum": PSISGD(group(shapes, manifold=PSI()), lr=1e-3),
            "PSISGD, momentum": PSISGD(group(shapes, manifold=PSI()), lr=1e-3, momentum=0.9),
            "RiemannianSGD, sphere": RiemannianSGD(group(shapes, manifold=Sphere()), lr=1e-3, momentum=0.9),
            "SGDG, orthogonality 0": SGDG(group(shapes, manifold=Grassmann(1)), orthogonality=0.0),
        }
        times = {key: [] for key in optimizers}
        for _ in range(rounds):
            for key, optimizer in optimizers.items():
                start = time.perf_counter()
                optimizer.step()
                times[key].append(time.perf_counter() - start)
        base = statistics.median(times["torch SGD"][1:])
        print(name)
        for key, values in times.items():
            median = statistics.median(values[1:])
            print(f"  {key:26} {1e3 * median:8.2f} ms  {median / base:6.2f} ×")


if __name__ == "__main__":
    main()
