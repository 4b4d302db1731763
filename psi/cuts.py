"""`Cut`: one way to cut a parameter into points, and all the ways that may make it scale-invariant."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor, nn

from ..manifolds import Rows
from ..manifolds.parameters.factors import Factors, Grid
from ..manifolds.parameters.rows import Layout

__all__ = ["Cut", "cuts", "sibling"]


@dataclass(frozen=True)
class Cut:
    """A parameter cut into points, alone or with partners of the same module."""

    name: str
    granularity: str
    rows: Rows
    joined: tuple[str, ...]
    count: int
    """How many points it has."""
    slices: Factors | None = None
    """The slices that are its points, in place of `rows`."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameters whose rows are parts of its points."""
        return (self.name, *(sibling(self.name, part) for part in self.joined))

    def layout(self, part: str, tensor: Tensor) -> Layout | Grid:
        """How `part`, or a tensor like it, is cut."""
        if self.slices is None:
            return self.rows.layout(tensor, 1)
        return next(each for each in self.slices.parts if each.name == part).grid(tensor.shape, event_ndim=1)

    def multiply_(self, part: str, tensor: Tensor, factors: Tensor) -> None:
        """Multiply the points in `tensor` by `factors`, (points,), in place."""
        layout = self.layout(part, tensor)
        if isinstance(layout, Grid):
            layout.write(tensor, layout.split(tensor) * factors.to(tensor).view(-1, 1))
        else:
            layout.multiply_(tensor, factors)


def sibling(name: str, leaf: str) -> str:
    """Qualified name of the parameter `leaf` of the module that `name` belongs to."""
    return f"{name.rpartition('.')[0]}.{leaf}".lstrip(".")


def cuts(model: nn.Module, name: str, measured: Container[str]) -> list[Cut]:
    """Every cut of a parameter that `Rows` can say, from the finest to the whole tensor, each alone and with one partner
    that is `measured`, too: not an integer, and not a bias that another module holds first.

    Alone first: a bias that is dead (in front of BatchNorm) does not mind to scale along, and need not. A finer cut has more
    points, so that sorting by their number tries it first.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    p = owner.get_parameter(leaf)
    if p.ndim == 0 or p.numel() == 0:
        return []
    # What may scale along: vectors beside a matrix, matrices beside a stack of them, the bias of a normalization layer
    # beside its weight.
    partners = {
        key: q
        for key, q in owner._parameters.items()
        if q is not None
        and key != leaf
        and sibling(name, key) in measured
        and (0 < q.ndim < p.ndim or (q.ndim == p.ndim == 1 and "bias" in key))
    }
    found = []
    for granularity, rows in _ways(
        p, transposed=getattr(owner, "groups", 1) if getattr(owner, "transposed", False) else 1
    ):
        count = rows.layout(p, 1).batch[0]
        if count < p.numel() or count == 1:  # a positive number on its own has no direction
            found.append(Cut(name, granularity, rows, (), count))
        found += [Cut(name, granularity, rows, (key,), count) for key, q in partners.items() if _fits(rows, q, count)]
    return sorted(found, key=lambda cut: -cut.count)


def _ways(p: Tensor, transposed: int) -> Iterator[tuple[str, Rows]]:
    """Granularities and cuts of `p` that differ from each other; `transposed` is the number of groups of a transposed
    convolution."""
    wide = [dim for dim, size in enumerate(p.shape) if size > 1]
    if p.shape[0] == 1 or wide == [0]:
        yield "row", Rows()
    channels = transposed > 1 and p.ndim > 1 and (p.shape[1] > 1 or p.shape[0] > transposed)
    if channels:
        yield "row", Rows(dim=1, groups=transposed)
    for size in range(1, len(wide)):
        for dims in combinations(wide, size):
            if not (channels and transposed == p.shape[0] and dims == (0, 1)):
                yield "row", Rows(dim=dims if size > 1 else dims[0])
    divisors = [g for g in range(p.shape[0] - 1, 1, -1) if p.shape[0] % g == 0]
    if wide[:2] == [0, 1]:
        yield from (("row", Rows(dim=1, groups=g)) for g in divisors if g != transposed)
    yield from (("block", Rows(blocks=g)) for g in divisors if not (channels and p.shape[1] == 1 and g == transposed))
    if p.shape[0] > 1:
        yield "tensor", Rows.whole()


def _fits(rows: Rows, partner: Tensor, count: int) -> bool:
    """Whether `rows` cuts `partner` into as many points."""
    if rows.blocks is not None:
        return partner.shape[0] % rows.blocks == 0
    vector = partner.ndim == 1 and rows.dim in (0, 1)
    return (vector or max(rows.dims) < partner.ndim) and rows.layout(partner, 1).batch == (count,)
