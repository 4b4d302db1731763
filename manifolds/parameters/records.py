"""Records of a declaration: a value on the module that owns the parameter, and a mark on the tensor.

The declaration defines the manifold of the parameter. The mark is used only to raise errors: by it an optimizer recognises
a parameter whose declaration was lost.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..base import Manifold
from .factors import Factors, Part
from .rows import AnyLayout, Rows

__all__ = [
    "Declaration",
    "Entry",
    "Mark",
    "changes",
    "entries",
    "erase",
    "geometries_of",
    "geometry",
    "geometry_of_slices",
    "joined_geometries",
    "mark",
    "mark_all",
    "mark_entries",
    "marked",
    "record",
    "unmark",
]

_DECLARATIONS = "_retract_declarations"
_MARK = "_retract_mark"
_AND, _AT = " + ", " at "
_changes = 0


@dataclass(frozen=True)
class Declaration:
    """A declaration, as `declare` stores it."""

    manifold: Manifold
    """The manifold of the points."""
    rows: Rows = Rows()
    """How the parameter is cut into points."""
    joined: tuple[str, ...] = ()
    """Names of the parameters of the same module whose rows belong to the same points."""
    factors: Factors | None = None
    """The slices that are the points, in place of `rows` and `joined`; their parameters may belong to any modules inside."""
    given: Factors | None = field(default=None, compare=False, repr=False)
    """The same slices as they were given, with numbers left out."""
    found: bool = field(default=False, compare=False, repr=False)
    """Whether `psi.declare` made the declaration, and may remove it."""

    def names(self, leaf: str) -> tuple[str, ...]:
        """The names of its parameters, relative to the module on which the declaration is stored under `leaf`."""
        return (leaf, *self.joined) if self.factors is None else self.factors.names

    def geometry(self, name: str) -> str:
        """The description of the geometry of one of its parameters, by the functions `geometry` and `geometry_of_slices`."""
        if self.factors is None:
            return geometry(self.manifold, self.rows, 1 + len(self.joined))
        return geometry_of_slices(self.manifold, [part for part in self.factors.parts if part.name == name])

    def arrays(self, leaf: str, params: Sequence[Tensor]) -> tuple[list[Tensor], list[AnyLayout]]:
        """The tensors of the parts of its points, and their layouts, for parameters in the order of `names`."""
        if self.factors is None:
            return [*params], [*self.rows.layouts(params, self.manifold.event_ndim)]
        named = dict(zip(self.names(leaf), params, strict=True))
        parts = [named[part.name] for part in self.factors.parts]
        return parts, [*self.factors.layouts(parts, self.manifold.event_ndim)]


class Entry(NamedTuple):
    """One declaration of a model, and its place."""

    name: str
    """Qualified name of the parameter, or the description of factors."""
    owner: nn.Module
    path: str
    """The path of `owner` in the model, with a dot at its end, or empty."""
    leaf: str
    declaration: Declaration

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the parameter and of its joined parameters, or those of the parameters of factors."""
        return tuple(self.path + name for name in self.declaration.names(self.leaf))

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters of `names` that still exist."""
        return [part for part, _ in self.named_parts]

    @property
    def named_parts(self) -> list[tuple[nn.Parameter, str]]:
        """Those parameters with their names in `owner`."""
        found = ((_lookup(self.owner, name), name) for name in self.declaration.names(self.leaf))
        return [(part, name) for part, name in found if part is not None]


def _lookup(owner: nn.Module, name: str) -> nn.Parameter | None:
    path, _, leaf = name.rpartition(".")
    try:
        return owner.get_submodule(path)._parameters.get(leaf)
    except AttributeError:
        return None


class _Declarations(dict[str, Declaration]):
    """The declarations of one module, by parameter name.

    `copy.deepcopy` drops the attributes of a parameter, so copying this object with its module marks the copied parameters.
    """

    def __init__(self, owner: nn.Module, declarations: Mapping[str, Declaration]) -> None:
        super().__init__(declarations)
        # A strong reference would keep the module's memory until the next garbage collection.
        self._owner = weakref.ref(owner)

    def __reduce__(self) -> tuple[Any, ...]:
        owner = self._owner()
        if owner is None:
            return dict, (dict(self),)
        parts = [(entry.leaf, entry.declaration, entry.parts) for entry in _of(owner, "")]
        return _copied, (owner, dict(self), parts)


def _copied(
    owner: nn.Module, declarations: dict[str, Declaration], declared: list[tuple[str, Declaration, list[nn.Parameter]]]
) -> _Declarations:
    for leaf, declaration, parts in declared:
        for part, name in zip(parts, declaration.names(leaf), strict=False):
            mark(part, leaf, declaration.geometry(name))
    return _Declarations(owner, declarations)


def entries(model: nn.Module) -> Iterator[Entry]:
    """Every declaration in `model`; those of tied parameters under all their names."""
    for path, module in model.named_modules():
        yield from _of(module, f"{path}." if path else "")


def _of(owner: nn.Module, path: str) -> Iterator[Entry]:
    for leaf, declaration in owner.__dict__.get(_DECLARATIONS, {}).items():
        given = declaration.given
        name = path + leaf if given is None else str(given.renamed(lambda name: path + name))
        yield Entry(name, owner, path, leaf, declaration)


def record(owner: nn.Module, path: str, leaf: str, declaration: Declaration) -> None:
    """Store `declaration` on `owner`, at `path` in the model, replacing any other of the parameter `leaf`, and mark its parameters.

    Copies of `owner` by `copy.copy` share the stored dict, which is therefore replaced and not changed.
    """
    erase(owner, leaf)
    owner.__dict__[_DECLARATIONS] = _Declarations(owner, {**owner.__dict__.get(_DECLARATIONS, {}), leaf: declaration})
    mark_entries(entry for entry in _of(owner, path) if entry.leaf == leaf)


def erase(owner: nn.Module, leaf: str) -> None:
    """Remove the declaration of the parameter `leaf` from `owner`, if there is one, and its marks."""
    kept = {}
    for entry in _of(owner, ""):
        if entry.leaf != leaf:
            kept[entry.leaf] = entry.declaration
            continue
        for part, name in entry.named_parts:
            unmark(part, entry.declaration.geometry(name))
    owner.__dict__.pop(_DECLARATIONS, None)
    if kept:
        owner.__dict__[_DECLARATIONS] = _Declarations(owner, kept)


class Mark(NamedTuple):
    """The mark of a declared tensor."""

    name: str
    """The name under which it was declared."""
    geometry: str

    @property
    def geometries(self) -> list[str]:
        """The descriptions of all declarations of the tensor, of which slices may have several."""
        return self.geometry.split(_AND) if self.in_slices else [self.geometry]

    @property
    def in_slices(self) -> bool:
        """Whether slices of the tensor were declared."""
        return _AT in self.geometry


def geometry(manifold: Manifold, rows: Rows, parts: int) -> str:
    """A description of the geometry, for comparisons and messages."""
    cut = "" if rows == Rows() else f" {rows!r}"
    more = f" jointly with {parts - 1} more" if parts > 1 else ""
    return f"{manifold!r}{cut}{more}"


def geometry_of_slices(manifold: Manifold, parts: Sequence[Part]) -> str:
    """A description of the geometry of slices of one parameter."""
    return f"{manifold!r}{_AT}{' and '.join(str(replace(part, name='')) or '()' for part in parts)}"


def joined_geometries(geometries: Iterable[str]) -> str:
    """The description of a parameter in several declarations."""
    return _AND.join(sorted(set(geometries)))


def mark(part: Tensor, name: str, geometry: str) -> None:
    """Mark `part` as declared under `name`, with the description `geometry`; slices are added to those that are marked."""
    global _changes
    before = marked(part)
    if before is not None and before.in_slices and _AT in geometry:
        geometry = joined_geometries([*before.geometries, *geometry.split(_AND)])
    if before is None or before.geometry != geometry:
        _changes += 1
        # Plain values, so that a pickled parameter loads under weights_only=True.
        setattr(part, _MARK, (name, geometry))


def mark_all(model: nn.Module) -> None:
    """Mark every parameter of `model` that is declared."""
    mark_entries(entries(model))


def geometries_of(found: Iterable[Entry]) -> dict[Tensor, tuple[str, list[str]]]:
    """The parameters of some declarations, each with the name of the first and the descriptions of all."""
    geometries: dict[Tensor, tuple[str, list[str]]] = {}
    for entry in found:
        for part, name in entry.named_parts:
            geometries.setdefault(part, (entry.name, []))[1].append(entry.declaration.geometry(name))
    return geometries


def mark_entries(found: Iterable[Entry]) -> None:
    """Mark the parameters of some declarations; slices of one parameter get one mark for all of them."""
    for part, (name, geometries) in geometries_of(found).items():
        mark(part, name, joined_geometries(geometries))


def unmark(part: Tensor, geometry: str | None = None) -> None:
    """Remove the mark of `part`; of several sets of slices only that with this `geometry`."""
    found = part.__dict__.pop(_MARK, None)
    others = [each for each in Mark(*found).geometries if each != geometry] if found and geometry else []
    if others and Mark(*found).in_slices:
        setattr(part, _MARK, (found[0], joined_geometries(others)))


def marked(part: Tensor) -> Mark | None:
    """The mark of `part`, if it has one."""
    found = getattr(part, _MARK, None)
    return None if found is None else Mark(*found)


def changes() -> int:
    """The number of marks written or changed in this process; while it is constant, there are no new declarations."""
    return _changes
