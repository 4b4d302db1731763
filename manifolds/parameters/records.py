"""Records of a declaration: a value on the module that owns the parameter, and a mark on the tensor.

The declaration says where the parameter lives. The mark only serves to refuse: it is what an optimizer still sees of a
declaration that was lost on the way to it.
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
    """What `declare` writes."""

    manifold: Manifold
    """Where the points live."""
    rows: Rows = Rows()
    """How the parameter is cut into points."""
    joined: tuple[str, ...] = ()
    """Names of the parameters of the same module whose rows belong to the same points."""
    found: bool = field(default=False, compare=False, repr=False)
    """Whether `psi.declare` wrote it, which may then take it back."""

    @property
    def geometry(self) -> str:
        """As `geometry` has it."""
        return geometry(self.manifold, self.rows, 1 + len(self.joined))


class Entry(NamedTuple):
    """One declaration of a model, as it is written, and where."""

    name: str
    """Qualified name of the parameter."""
    owner: nn.Module
    leaf: str
    declaration: Declaration

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the parameter and of those joined to it."""
        path = self.name.removesuffix(self.leaf)
        return (self.name, *(path + part for part in self.declaration.joined))

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters of `names`, those that are still there."""
        found = (self.owner._parameters.get(leaf) for leaf in (self.leaf, *self.declaration.joined))
        return [part for part in found if part is not None]


class _Declarations(dict[str, Declaration]):
    """Those of one module, by parameter name.

    `copy.deepcopy` drops the attributes of a parameter, so a copy of these, with its module, marks the copied parameters.
    """

    def __init__(self, owner: nn.Module, declarations: Mapping[str, Declaration]) -> None:
        super().__init__(declarations)
        # A strong reference would keep the module's memory until the garbage collector comes by.
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
    """Every declaration in `model` as it is written, of tied parameters each."""
    for path, module in model.named_modules():
        yield from _of(module, f"{path}." if path else "")


def _of(owner: nn.Module, path: str) -> Iterator[Entry]:
    for leaf, declaration in owner.__dict__.get(_DECLARATIONS, {}).items():
        yield Entry(path + leaf, owner, leaf, declaration)


def record(owner: nn.Module, leaf: str, name: str, declaration: Declaration) -> None:
    """Write `declaration` on `owner`, in place of any other of the parameter `leaf`, and mark its parameters.

    Copies of `owner` by `copy.copy`, which share what is there, do not change.
    """
    erase(owner, leaf)
    owner.__dict__[_DECLARATIONS] = _Declarations(owner, {**owner.__dict__.get(_DECLARATIONS, {}), leaf: declaration})
    for part in Entry(name, owner, leaf, declaration).parts:
        mark(part, name, declaration.geometry)


def erase(owner: nn.Module, leaf: str) -> None:
    """Take the declaration of the parameter `leaf` off `owner`, if there is one, and its marks."""
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
    """What a tensor says of its declaration."""

    name: str
    """Under which it was declared."""
    geometry: str


def geometry(manifold: Manifold, rows: Rows, parts: int) -> str:
    """In words, for comparing and for messages."""
    cut = "" if rows == Rows() else f" {rows!r}"
    more = f" jointly with {parts - 1} more" if parts > 1 else ""
    return f"{manifold!r}{cut}{more}"


def mark(part: Tensor, name: str, geometry: str) -> None:
    """Write on `part` that it was declared as `name`, with that `geometry`."""
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
    """Take the mark off `part`."""
    part.__dict__.pop(_MARK, None)


def marked(part: Tensor) -> Mark | None:
    """The mark of `part`, if it has one."""
    found = getattr(part, _MARK, None)
    return None if found is None else Mark(*found)


def changes() -> int:
    """How often a mark was written or changed in this process: as long as that stays, no declaration is new."""
    return _changes
