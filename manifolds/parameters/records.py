"""Records of a declaration: a value on the module that owns the parameter, and a mark on the tensor.

The declaration defines the manifold of the parameter. The mark is used only to raise errors: by it an optimizer recognises
a parameter whose declaration was lost.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..base import Manifold
from .rows import Rows

__all__ = [
    "Declaration",
    "Entry",
    "Mark",
    "changes",
    "entries",
    "erase",
    "geometry",
    "mark",
    "mark_all",
    "marked",
    "record",
    "unmark",
]

_DECLARATIONS = "_retract_declarations"
_MARK = "_retract_mark"
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
    found: bool = field(default=False, compare=False, repr=False)
    """Whether `psi.declare` made the declaration, and may remove it."""

    @property
    def geometry(self) -> str:
        """The description by the function `geometry`."""
        return geometry(self.manifold, self.rows, 1 + len(self.joined))


class Entry(NamedTuple):
    """One declaration of a model, and its place."""

    name: str
    """Qualified name of the parameter."""
    owner: nn.Module
    leaf: str
    declaration: Declaration

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the parameter and of its joined parameters."""
        path = self.name.removesuffix(self.leaf)
        return (self.name, *(path + part for part in self.declaration.joined))

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters of `names` that still exist."""
        found = (self.owner._parameters.get(leaf) for leaf in (self.leaf, *self.declaration.joined))
        return [part for part in found if part is not None]


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
        for part in parts:
            mark(part, leaf, declaration.geometry)
    return _Declarations(owner, declarations)


def entries(model: nn.Module) -> Iterator[Entry]:
    """Every declaration in `model`; those of tied parameters under all their names."""
    for path, module in model.named_modules():
        yield from _of(module, f"{path}." if path else "")


def _of(owner: nn.Module, path: str) -> Iterator[Entry]:
    for leaf, declaration in owner.__dict__.get(_DECLARATIONS, {}).items():
        yield Entry(path + leaf, owner, leaf, declaration)


def record(owner: nn.Module, leaf: str, name: str, declaration: Declaration) -> None:
    """Store `declaration` on `owner`, replacing any other of the parameter `leaf`, and mark its parameters.

    Copies of `owner` by `copy.copy` share the stored dict, which is therefore replaced and not changed.
    """
    erase(owner, leaf)
    owner.__dict__[_DECLARATIONS] = _Declarations(owner, {**owner.__dict__.get(_DECLARATIONS, {}), leaf: declaration})
    for part in Entry(name, owner, leaf, declaration).parts:
        mark(part, name, declaration.geometry)


def erase(owner: nn.Module, leaf: str) -> None:
    """Remove the declaration of the parameter `leaf` from `owner`, if there is one, and its marks."""
    kept = {}
    for entry in _of(owner, ""):
        if entry.leaf != leaf:
            kept[entry.leaf] = entry.declaration
            continue
        for part in entry.parts:
            unmark(part)
    owner.__dict__.pop(_DECLARATIONS, None)
    if kept:
        owner.__dict__[_DECLARATIONS] = _Declarations(owner, kept)


class Mark(NamedTuple):
    """The mark of a declared tensor."""

    name: str
    """The name under which it was declared."""
    geometry: str


def geometry(manifold: Manifold, rows: Rows, parts: int) -> str:
    """A description of the geometry, for comparisons and messages."""
    cut = "" if rows == Rows() else f" {rows!r}"
    more = f" jointly with {parts - 1} more" if parts > 1 else ""
    return f"{manifold!r}{cut}{more}"


def mark(part: Tensor, name: str, geometry: str) -> None:
    """Mark `part` as declared under `name`, with the description `geometry`."""
    global _changes
    before = marked(part)
    if before is None or before.geometry != geometry:
        _changes += 1
        # Plain values, so that a pickled parameter loads under weights_only=True.
        setattr(part, _MARK, (name, geometry))


def mark_all(model: nn.Module) -> None:
    """Mark every parameter of `model` that is declared."""
    for entry in entries(model):
        for part in entry.parts:
            mark(part, entry.name, entry.declaration.geometry)


def unmark(part: Tensor) -> None:
    """Remove the mark of `part`."""
    part.__dict__.pop(_MARK, None)


def marked(part: Tensor) -> Mark | None:
    """The mark of `part`, if it has one."""
    found = getattr(part, _MARK, None)
    return None if found is None else Mark(*found)


def changes() -> int:
    """The number of marks written or changed in this process; while it is constant, there are no new declarations."""
    return _changes
