"""Which parts of a network's weights may be rescaled, tried one by one: an answer beside `psi.find`'s that shares none of its code.

A cut is a `Rows` value and the names of vectors that scale along. A point of it may be multiplied by a positive factor
if no output changes.
"""

import math
import random
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain, combinations

import torch
from retract.manifolds import Rows
from torch import Tensor

REACH = 7.0
"""Factors lie between 2^-7 and 2^7."""
FAR = 10.0
"""The same for what is to count as missed: what holds for moderate factors only is invariant within limits."""
SAME = 1e-4
"""Change of an output, relative to what a move as long as the tensor does, that counts as none; but never more than `BARELY`, and
never less than `ROUNDING`, relative to the output."""
BARELY, ROUNDING = 1e-7, 1e-11
LIVE = 1e-6
"""Relative change of an output that a move as long as the tensor must cause, or nothing can be told about it."""


def leaves(value, seen=None):
    """Every tensor of floating point in a nest of containers and plain objects."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        if value.is_complex():
            value = torch.view_as_real(value)
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(leaves(v, seen) for v in value.values())
    elif isinstance(value, tuple | list | set):
        yield from chain.from_iterable(leaves(v, seen) for v in value)
    elif hasattr(value, "__dict__") and id(value) not in seen and not isinstance(value, type | torch.nn.Module):
        seen.add(id(value))
        yield from leaves(vars(value), seen)


def numbers(rows, shape):
    """For every entry of a weight of `shape` the number of its point."""
    if rows.blocks is not None:
        axis = torch.arange(shape[0]) // max(1, shape[0] // rows.blocks)
        return axis.view(-1, *(1,) * (len(shape) - 1)).expand(shape)
    index = torch.zeros(1, dtype=torch.int64)
    axes = [torch.arange(n) for n in shape]
    keys = [axes[0] // (shape[0] // rows.groups), axes[1]] if rows.groups > 1 else [axes[a] for a in rows.dims]
    for axis, key in zip((0, 1) if rows.groups > 1 else rows.dims, keys, strict=True):
        width = int(key.max()) + 1
        index = index * width + key.view([-1 if a == axis else 1 for a in range(len(shape))])
    return index.expand(shape)


def numbers_along(rows, count, size):
    """The same for a vector of `size` that scales along with `count` points, or None where it does not line up."""
    if rows.blocks is not None:
        return torch.arange(size) // (size // rows.blocks) if size % rows.blocks == 0 else None
    return torch.arange(size) if size == count else None


def ways(shape):
    """All cuts of a shape of several axes that `Rows` can say, with the number of their points, finest first."""
    found = [Rows(dim=axes if len(axes) > 1 else axes[0]) for axes in _subsets(range(len(shape)))]
    divisors = [g for g in range(2, shape[0] + 1) if shape[0] % g == 0]
    found += [Rows(dim=1, groups=g) for g in divisors] + [Rows(blocks=g) for g in divisors[:-1]]
    counted = [(int(numbers(rows, shape).max()) + 1, rows) for rows in found]
    return sorted(counted, key=lambda pair: -pair[0])


def _subsets(axes):
    """Non-empty ones, but not all axes at once."""
    return chain.from_iterable(combinations(axes, k) for k in range(1, len(axes)))


WHOLE = Rows.whole()


class BruteForce:
    """A model whose weights are changed in place, run, and put back. It belongs to the tester: pass a copy."""

    def __init__(self, model, args=(), kwargs=None, context=nullcontext, points=8, moves=4):
        self.model, self.args, self.kwargs, self.context = model, args, kwargs or {}, context
        self.points, self.moves = points, moves
        self.weights = dict(model.named_parameters(remove_duplicate=False))
        self.base = self.outputs()
        self._live = {}

    @torch.no_grad()
    def outputs(self):
        """Every floating-point tensor that the model returns, with the same random numbers and buffers each time."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        torch.manual_seed(0)
        random.seed(0)
        try:
            with self.context():
                return [t.clone() for t in leaves(self.model(*self.args, **self.kwargs))]
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    @torch.no_grad()
    def changes(self, new):
        """Relative change of each output with the weights `new` (name → tensor) in place."""
        before = {name: self.weights[name].detach().clone() for name in new}
        for name, tensor in new.items():
            self.weights[name].copy_(tensor)
        try:
            run = self.outputs()
        finally:
            for name, tensor in before.items():
                self.weights[name].copy_(tensor)
        return torch.tensor([_change(t, b) for t, b in zip(run, self.base, strict=True)])

    def scaled(self, cut, factors):
        """The weights of a cut times one factor per point. Entries of number -1 are in none."""
        every = torch.cat([factors, torch.ones(1).to(factors)])
        return {name: self.weights[name].detach() * every[at].to(self.weights[name]) for name, at in cut.items()}

    def cut(self, name, rows, joined=()):
        """Name → numbers of the points, for the weight and its partners; None where they do not line up."""
        at = {name: numbers(rows, tuple(self.weights[name].shape))}
        count = int(at[name].max()) + 1
        for partner in joined:
            at[partner] = numbers_along(rows, count, len(self.weights[partner]))
        return None if any(part is None for part in at.values()) else at

    def cut_of(self, f):
        """As `cut`, of a finding."""
        if not f.slices:
            return self.cut(f.name, f.rows, f.names[1:])
        at = {name: torch.full_like(self.weights[name], -1, dtype=torch.int64) for name in f.names}
        first = 0
        for points in f.slices:
            for part in points.parts:
                grid = part.grid(at[part.name].shape)
                grid.write(
                    at[part.name], first + torch.arange(grid.points)[:, None, None].expand(grid.batch + grid.event)
                )
            first += grid.points
        return at

    def holds(self, cut, reach=REACH):
        """Whether all points may be rescaled, up, down and both, each by a factor of its own, and `points` single ones too."""
        count = 1 + max(int(part.max()) for part in cut.values())
        generator = torch.Generator().manual_seed(count)
        draws = [torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(3)]
        # Powers of two, which change no rounding.
        trials = [(reach * t).round() for t in (draws[0], -draws[1], 2 * draws[2] - 1)]
        trials += [torch.full_like(draws[0], reach), torch.full_like(draws[0], -reach)]
        for i in torch.randperm(count, generator=generator)[: self.points].tolist() if count > 1 else []:
            trials += [torch.where(torch.arange(count) == i, turn * reach, 0.0) for turn in (1, -1)]
        limit = min(BARELY, max(ROUNDING, SAME * max(self.live(name) for name in cut)))
        return all(bool((self.changes(self.scaled(cut, 2.0**t)) <= limit).all()) for t in trials)

    def live(self, name, mask=None):
        """Largest relative change of an output when the tensor, or the entries in `mask`, move by their own length."""
        if mask is None and name in self._live:
            return self._live[name]
        w = self.weights[name].detach()
        move = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(w)
        if mask is not None:
            move = move * mask
        size = (w if mask is None else w * mask).norm()
        change = float(self.changes({name: w + move * (size / move.norm())}).max())
        if mask is None:
            self._live[name] = change
        return change

    def partners(self, name):
        """Vectors of the same module: none of them, each, and every two."""
        path, _, leaf = name.rpartition(".")
        owner = self.model.get_submodule(path)
        names = {id(p): n for n, p in self.weights.items()}
        vectors = [
            names[id(p)] for key, p in owner._parameters.items() if key != leaf and p is not None and p.ndim == 1
        ]
        vectors = list(dict.fromkeys(vectors))
        return [joined for k in range(3) for joined in combinations(vectors, k)]

    def finest(self, name, reach=REACH):
        """The cut with the most points that holds, and among those the one with the fewest partners, as (points, Rows, joined);
        None if not even the whole tensor may be rescaled with any of them."""
        together = [joined for joined in self.partners(name) if self.holds(self.cut(name, WHOLE, joined), reach)]
        if not together:
            return None
        for count, rows in ways(tuple(self.weights[name].shape)):
            for joined in together:
                cut = self.cut(name, rows, joined)
                if cut is not None and self.holds(cut, reach):
                    return count, rows, joined
        return 1, WHOLE, together[0]

    def visible(self, cut):
        """How doubling a cut changes the outputs, as a share of what a random move of that length does: (of the whole, the largest of
        some single points). Random moves are averaged; what rounding a weight does is not counted."""
        count = 1 + max(int(part.max()) for part in cut.values())
        generator = torch.Generator().manual_seed(count)
        whole = self._visible(cut, None, generator)
        chosen = torch.randperm(count, generator=generator)[: self.points].tolist() if count > 1 else []
        return whole, max((self._visible(cut, point, generator) for point in chosen), default=whole)

    def _visible(self, cut, point, generator):
        masks = {
            name: (at >= 0 if point is None else at == point).to(self.weights[name]).expand_as(self.weights[name])
            for name, at in cut.items()
        }
        parts = {name: self.weights[name].detach() * mask for name, mask in masks.items()}
        doubled = self.changes({n: self.weights[n].detach() + part for n, part in parts.items()})
        unit = torch.finfo(next(iter(parts.values())).dtype).eps
        if (doubled <= 4 * unit).all():
            return 0.0
        moved, rounded = [], []
        for _ in range(self.moves):
            way = {
                n: torch.randn(m.shape, generator=generator, dtype=torch.float64).to(m) * m for n, m in masks.items()
            }
            stretch = _length(parts) / max(_length(way), 1e-300)
            moved.append(self.changes({n: self.weights[n].detach() + stretch * w for n, w in way.items()}))
            rounded.append(self.changes({n: self.weights[n].detach() + unit * stretch * w for n, w in way.items()}))
        size = torch.stack(moved).square().mean(0).sqrt().clamp(min=1e-300)
        noise = 4 * torch.stack(rounded).amax(0).clamp(min=unit)
        return float(torch.where(doubled > noise, doubled / size, 0.0).max())


def _length(tensors):
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def _change(run, base):
    if run.shape != base.shape:
        return math.inf
    size = float(base.double().norm())
    gap = float((run.double() - base.double()).norm())
    return 0.0 if gap == 0 else gap / max(size, 1e-300)
