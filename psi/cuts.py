"""`Cut`: one way to cut a parameter into points, and all the ways that may make it scale-invariant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..manifolds import Rows

__all__ = ["Cut", "cuts", "sibling"]


@dataclass(frozen=True)
class Cut:
    """A parameter cut into points, alone or with partners of the same module."""

    name: str
    granularity: str
    rows: Rows
    joined: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameters whose rows lie in its points."""
        return (self.name, *(sibling(self.name, part) for part in self.joined))


def sibling(name: str, leaf: str) -> str:
    """Qualified name of the parameter `leaf` of the module that `name` belongs to."""
    return f"{name.rpartition('.')[0]}.{leaf}".lstrip(".")


def cuts(model: nn.Module, name: str) -> Iterator[Cut]:
    """Every cut of a parameter, from the finest to the whole tensor, each alone and with its module's bias.

    Alone first: a bias that is dead (in front of BatchNorm) does not mind to scale along, and need not.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    p = owner.get_parameter(leaf)
    if p.ndim == 0:
        return
    ways: list[tuple[str, Rows]] = [("row", Rows())]
    if p.ndim > 1:
        groups = getattr(owner, "groups", 1) if getattr(owner, "transposed", False) else 1
        ways.append(("row", Rows(axis=1, groups=groups)))
    ways += [("block", Rows(blocks=g)) for g in range(p.shape[0] - 1, 1, -1) if p.shape[0] % g == 0]
    ways.append(("tensor", Rows(blocks=1)))
    # What may scale along: vectors beside a matrix, the shift beside a gain.
    partners = [
        (key, q.shape[0])
        for key, q in owner._parameters.items()
        if q is not None and q.ndim == 1 and key != leaf and (p.ndim > 1 or ("bias" in key and "weight" in leaf))
    ]
    for granularity, rows in ways:
        yield Cut(name, granularity, rows, ())
        for key, size in partners:
            fits = size % rows.blocks == 0 if rows.blocks is not None else (size,) == rows.layout(p, 1).batch
            if fits:
                yield Cut(name, granularity, rows, (key,))
