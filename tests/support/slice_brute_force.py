"""Random fused weights, and which of their slices may be rescaled, tried one run of slices after the other: an answer beside `psi.find`'s
that shares none of its code."""

import random

import torch
from brute_force import BruteForce
from pair_networks import Transposed
from torch import nn
from torch.nn import functional as F  # noqa: N812

INPUTS = 6
NORMS = {
    "none": lambda z: z,
    "head": lambda z: F.rms_norm(z, z.shape[-1:]),
    "centred head": lambda z: F.layer_norm(z, z.shape[-1:], eps=1e-20),
    "length of a head": lambda z: F.normalize(z, dim=-1),
    "section": lambda z: F.rms_norm(z, z.shape[-2:]),
    "unit": lambda z: F.batch_norm(z.flatten(0, -3).flatten(1), None, None, training=True, eps=1e-20).view(z.shape),
    "squashed head": lambda z: F.rms_norm(z.sigmoid(), z.shape[-1:]),
}


class RandomFused(nn.Module):
    """A projection whose outputs are sections of heads, one after the other, or side by side per head, or with the heads inside; each
    section is normalized in some way."""

    def __init__(self, number):
        super().__init__()
        draw = random.Random(number)
        self.layout = draw.choice(["sections", "sections", "side by side", "inside"])
        heads = draw.choice([1, 2, 3, 4])
        self.sections = [
            (
                heads if self.layout == "side by side" else draw.choice([1, 2, 3, heads]),
                draw.choice([3, 4, 5]),
                draw.choice(list(NORMS)),
            )
            for _ in range(draw.choice([2, 2, 3]))
        ]
        size = sum(n * k for n, k, _ in self.sections)
        bias = draw.random() < 0.5
        self.project = Transposed(INPUTS, size) if draw.random() < 0.3 else nn.Linear(INPUTS, size, bias)
        self.out = nn.Linear(size, 3)

    def forward(self, x):
        z = self.project(x)
        if self.layout == "side by side":
            z = z.unflatten(-1, (self.sections[0][0], -1)).split([k for _, k, _ in self.sections], -1)
        else:
            z = z.split([n * k for n, k, _ in self.sections], -1)
            inside = self.layout == "inside"
            shapes = [(k, n) if inside else (n, k) for n, k, _ in self.sections]
            z = [t.unflatten(-1, shape) for t, shape in zip(z, shapes, strict=True)]
            z = [t.transpose(-1, -2) for t in z] if inside else z
        z = [NORMS[norm](t).flatten(-2) for t, (_, _, norm) in zip(z, self.sections, strict=True)]
        return self.out(torch.cat(z, -1).tanh())


class Runs(BruteForce):
    """The smallest runs of slices at equal distances of a projection that may be rescaled, with its bias or without."""

    def smallest(self):
        """As sets of (name, number of the entry)."""
        weight = self.weights["project.weight"]
        dim = int(isinstance(self.model.project, Transposed))
        length, found = weight.shape[dim], []
        runs = {
            frozenset(range(start, start + distance * number, distance))
            for distance in range(1, length + 1)
            if length % distance == 0
            for number in range(1, length // distance + 1)
            for start in range(length - distance * (number - 1))
        }
        runs |= {  # the same places in all stretches of equal length
            frozenset(place + stretch for stretch in range(0, length, distance) for place in range(start, end))
            for distance in range(2, length)
            if length % distance == 0
            for end in range(2, distance + 1)
            for start in range(end - 1)
        }
        for partners in [[], ["project.bias"]][: 1 + ("project.bias" in self.weights)]:
            for run in sorted(runs, key=len):
                if not any(each <= run for each in found):
                    cut = {"project.weight": torch.full(weight.shape, -1)}
                    cut["project.weight"].index_fill_(dim, torch.tensor(sorted(run)), 0)
                    for name in partners:
                        cut[name] = cut["project.weight"].select(1 - dim, 0)
                    if self.holds(cut):
                        found.append(run)
                        yield from _points(cut)

    def reported(self, f):
        """The points of a finding in the same form."""
        return _points(self.cut_of(f)) if f.granularity != "none" else []


def _points(cut):
    for point in range(1 + max(int(at.max()) for at in cut.values())):
        yield frozenset(
            (name, entry) for name, at in cut.items() for entry in torch.where(at.flatten() == point)[0].tolist()
        )
