"""Pairs of factors tried one by one: an answer beside `psi.find`'s that shares none of its code.

A network is changed by random group elements, and its outputs are compared. Every scaling of one slice against another that leaves
the outputs as they are must follow from what was reported: as a direction in the space of all entries, it must be a combination of
the scalings of the reported pairs and of the scale-invariant points.
"""

import random

import torch
from brute_force import BruteForce
from pair_networks import Attention, D, Fused, Heads, Residual, Transposed, entries
from pair_networks_of_units import Adapted, Experts, Gate
from random_networks import Plan
from torch import nn
from torch.nn import functional as F  # noqa: N812

CHANGED = 1e-6
"""Relative change of an output that counts as one."""
REACH = 5.0
"""Random scalings are 2^-5 … 2^5."""


class PairForce(BruteForce):
    """A model whose pairs are acted upon. It belongs to the tester: pass a copy."""

    def holds_pair(self, pair, seed=0):
        """Whether random elements of the group, one per point, leave the outputs as they are: all together, and a few alone."""
        generator = torch.Generator().manual_seed(seed)
        alone = torch.randperm(pair.points, generator=generator)[:3].tolist()
        trials = [range(pair.points)] + [[point] for point in alone]
        return all(float(self.changes(self.acted(pair, some, generator)).max()) <= CHANGED for some in trials)

    def acted(self, pair, some, generator):
        """The weights with the group acting on some points."""
        new = {name: self.weights[name].detach().clone() for name in pair.names}
        k = pair.k
        for point in some:
            if pair.group == "GL":
                r = torch.randn(k, k, generator=generator, dtype=torch.float64)
                left, right = r, torch.linalg.inv(r).T
            else:
                a = 2.0 ** (REACH * (2 * torch.rand(1, generator=generator, dtype=torch.float64) - 1))
                sign = -1.0 if pair.group == "scaling" and torch.rand(1, generator=generator) < 0.5 else 1.0
                left, right = (
                    (torch.eye(k) * sign * a).double(),
                    (torch.eye(k) * sign**pair.degree / a**pair.degree).double(),
                )
            for parts, element in ((pair.factors.left, left), (pair.factors.right, right)):
                for part in parts:
                    flat = new[part.name].view(-1)
                    at = entries(part, tuple(new[part.name].shape), k)[point]
                    flat[at] = flat[at] @ element.to(flat)
        return new

    def generators(self, report):
        """Directions of the reported scalings in the space of all entries: (directions, entries)."""
        starts, total = {}, 0
        for name, w in self.weights.items():
            starts[name], total = total, total + w.numel()
        found = []
        for f in report.invariant:
            at = self.cut_of(f)
            for point in range(int(at[f.name].max()) + 1):
                direction = torch.zeros(total, dtype=torch.float64)
                for name, where in at.items():
                    direction[starts[name] + torch.where(where.flatten() == point)[0]] = 1.0
                found.append(direction)
        for pair in report.pairs:
            for point in range(pair.points):
                for c in range(pair.k):
                    direction = torch.zeros(total, dtype=torch.float64)
                    for parts, amount in ((pair.factors.left, 1.0), (pair.factors.right, -pair.degree)):
                        for part in parts:
                            at = entries(part, tuple(self.weights[part.name].shape), pair.k)[point, :, c]
                            direction[starts[part.name] + at] += amount
                    found.append(direction)
        return torch.stack(found) if found else torch.zeros(0, total, dtype=torch.float64)

    def missed(self, report):
        """Scalings of a slice, with a bias or not, against one of equal number of another parameter that leave the outputs as they are
        and do not follow from the report, as (slice, slice)."""
        starts, total = {}, 0
        for name, w in self.weights.items():
            starts[name], total = total, total + w.numel()
        known = self.generators(report)
        basis = torch.linalg.svd(known, full_matrices=False)
        span = basis.Vh[basis.S > 1e-9] if len(known) else known
        sides = [side for name, w in self.weights.items() for side in self._sides(name, w)]
        found = []
        for i, one in enumerate(sides):
            for other in sides[i + 1 :]:
                if one[0] != other[0] or set(one[1]) & set(other[1]):
                    continue
                direction = torch.zeros(total, dtype=torch.float64)
                factor = 2.0**3
                new = {}
                for side, a in ((one, factor), (other, 1 / factor)):
                    for name, dim in side[1].items():
                        w = self.weights[name].detach().clone()
                        w.select(dim, 0).mul_(a)
                        new[name] = w
                        mask = torch.zeros_like(w)
                        mask.select(dim, 0).fill_(1.0 if a > 1 else -1.0)
                        direction[starts[name] : starts[name] + w.numel()] = mask.double().flatten()
                rest = direction - span.T @ (span @ direction)
                unknown = float(rest.norm()) > 1e-6 * float(direction.norm()) and self._visible_sides(one, other)
                if unknown and float(self.changes(new).max()) <= 1e-9:
                    found.append((one[1], other[1]))
        return found

    def _sides(self, name, w):
        """(length, {name: dim}) of every dimension, alone and with the bias beside it."""
        path = name.rpartition(".")[0]
        bias = f"{path}.bias".lstrip(".")
        for dim, size in enumerate(w.shape):
            if size > 1:
                yield size, {name: dim}
                if bias in self.weights and bias != name and len(self.weights[bias]) == size:
                    yield size, {name: dim, bias: 0}

    def _visible_sides(self, *sides):
        """Whether scaling the first slice of each parameter alone shows in the outputs."""
        for name, dim in (part for _, parts in sides for part in parts.items()):
            new = self.weights[name].detach().clone()
            new.select(dim, 0).mul_(8.0)
            if float(self.changes({name: new}).max()) < 1e-6:
                return False
        return True


class Mixed(nn.Module):
    """Blocks of all kinds on a residual stream, drawn at random."""

    def __init__(self, draw):
        super().__init__()
        self.embed = nn.Linear(5, D)
        self.blocks = nn.ModuleList(self.block(draw) for _ in range(draw.randint(1, 3)))
        self.norm = nn.RMSNorm(D) if draw.random() < 0.5 else nn.Identity()
        self.head = nn.Linear(D, 3, bias=draw.random() < 0.5)

    def block(self, draw):
        norm = draw.choice([None, nn.RMSNorm(D), nn.LayerNorm(D)])
        bias = draw.random() < 0.5
        kind = draw.choice(["attention", "attention", "fused", "gate", "mlp", "mlp", "experts", "adapter"])
        activation = draw.choice([F.relu, F.leaky_relu, F.gelu, F.silu, torch.tanh, torch.square, torch.sin])
        if kind == "attention":
            heads, groups, k = draw.choice([(3, 3, 4), (4, 2, 3), (2, 1, 6), (2, 2, 4), (4, 4, 2), (6, 2, 2)])
            rotary = draw.choice([None, None, k - k % 2])
            inner = Attention(
                heads,
                groups,
                k,
                bias,
                draw.choice([None, None, nn.RMSNorm]),
                rotary=rotary,
                interleaved=draw.random() < 0.5,
            )
        elif kind == "fused":
            way = draw.choice([-2, -3])
            project = nn.Linear(D, 36, bias) if draw.random() < 0.5 else Transposed(D, 36)
            inner = Fused(
                project, lambda z: z.unflatten(-1, (3, 3, 4)).unbind(way), Heads(3, rotary=draw.choice([None, 4]))
            )
        elif kind == "gate":
            inner = Gate(activation, draw.random() < 0.5, bias)
        elif kind == "experts":
            inner = Experts(activation, draw.random() < 0.5)
        elif kind == "adapter":
            inner = nn.Sequential(nn.Linear(D, 8, bias), Adapted(), nn.Linear(10, D, bias))
        else:
            act = Act(activation)
            inner = nn.Sequential(nn.Linear(D, 7, bias), act, nn.Linear(7, 9, bias), act, nn.Linear(9, D, bias))
        return Residual(inner, norm)

    def forward(self, x):
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y))


class Act(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(number):
    """Random network `number`: (model, inputs, whether it is one of `random_networks`)."""
    if number % 2:
        plan = Plan(number)
        return plan.build(), plan.inputs(), plan
    torch.manual_seed(number)
    return Mixed(random.Random(number)), torch.randn(4, 6, 5), None
