"""Declarations: the manifold of a parameter, stored on its module as plain values.

A declaration is in ``module.__dict__``, not on the tensor: parameters stay plain `nn.Parameter`s, so nothing is lost by
deepcopy, pickling, ``.to``, ``load_state_dict(assign=True)``, meta-device init, DDP or FSDP2. The marks on tensors
(`records`) are used only to raise errors where a declared parameter would train in flat space.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import DeclarationError
from .. import numerics
from ..base import Manifold
from .factors import Factors, Part, covered
from .lookup import check_parts, check_ties, check_types, find_owner, find_parameter
from .placing import forget_loads, place, refuse_stale, watch_loads
from .records import Declaration, entries, erase, geometries_of, mark_all, mark_entries, marked, record, unmark
from .rows import Rows, gather, scatter_
from .slicing import sliced

__all__ = [
    "Declared",
    "declare",
    "declared",
    "preparing",
    "project_",
    "undeclare",
    "walk",
]

_REPRESENTATIVES = ("keep", "unit", "balanced")
_RESET_AND_DECLARE = (
    "Call reset_running_stats() on the normalization layers, declare, and then "
    "retract.psi.recalibrate(model, batches); PSI() with representative='keep' does not move rows; a parameter that is not "
    "followed by a normalization layer can be declared on the module that owns it, where no statistics are checked"
)
_RESET_AND_PROJECT = (
    "Call reset_running_stats() on the normalization layers, retract.project_(model), and then "
    "retract.psi.recalibrate(model, batches); for a parameter that is not followed by a normalization layer call "
    "retract.project_ on the module that owns it, where no statistics are checked"
)


class Declared(NamedTuple):
    """One declared point set of a model: qualified names and parameters of its parts, the declared one first."""

    name: str
    names: tuple[str, ...]
    parts: tuple[nn.Parameter, ...]
    declaration: Declaration
    factors: Factors | None
    """The factors of the declaration with qualified names."""


def declare(
    module: nn.Module,
    name: str | Part | Factors,
    manifold: Manifold,
    rows: Rows = Rows(),
    joined: Sequence[str] = (),
    representative: str = "keep",
) -> None:
    """Declare that parameter `name` of `module` is on `manifold`, and project it there in place.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4))
        >>> retract.declare(model, "0.weight", retract.manifolds.Sphere())  # every filter is a point
        >>> model[0].weight.flatten(1).norm(dim=1).allclose(torch.ones(8))
        True

    Args:
        module: the owner of the parameter, or any module above it with a dotted `name`
            (``declare(model, "head.weight", …)``). Trained running statistics are looked for in `module`, so pass
            the network.
        name: name of the parameter. Declaring it again replaces the declaration.
        manifold: any `Manifold`, or ``from_geoopt(…)``.
        rows: how the parameter is cut into points.
        joined: names of parameters of the same owner whose rows belong to the same points (such as a bias).
            Vector manifolds only.
        representative: ``"keep"`` does not move the rows of a scaling quotient (PSI), ``"unit"`` moves them to
            norm 1. On manifolds with fixed representatives (Sphere, Grassmann, Stiefel) the parameter moves to
            the nearest point in either case. ``"balanced"`` gives the factors of `FixedRank`, both of full rank, equal
            Gram matrices, BᵀB = A Aᵀ.

    Raises:
        DeclarationError: no such parameter, lazy, complex or integer; a zero or non-finite row; factors without full
            rank that are to be balanced; a move of the rows of a network whose running statistics have been trained; a tied name declared
            otherwise.
        GeometryError: the parameter's shape does not fit `rows` and `manifold`.
    """
    preparing(module, name, manifold, rows, joined, representative)()


@torch.no_grad()
@numerics.full_precision()
def preparing(
    module: nn.Module,
    name: str | Part | Factors,
    manifold: Manifold,
    rows: Rows = Rows(),
    joined: Sequence[str] = (),
    representative: str = "keep",
    *,
    found: bool = False,
    without: Collection[str] = (),
) -> Callable[[], None]:
    """Check a declaration, and return the function that makes it, which cannot fail.

    With it several parameters can be declared all or none, after those named in `without` have been undeclared.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise DeclarationError(
            f"{name}: a scripted module keeps no declarations; declare on the module before scripting"
        )
    factors = Factors((name,)) if isinstance(name, Part) else name if isinstance(name, Factors) else None
    if factors is None and not isinstance(name, str):
        raise DeclarationError(
            f"name={name!r}: the name of a parameter is a string, as named_parameters() gives it; slices are a Part or Factors"
        )
    name = name if isinstance(name, str) else str(factors)
    if not isinstance(joined, list | tuple) or not all(isinstance(part, str) for part in joined):
        raise DeclarationError(f"{name}: joined={joined!r} is not a list of names; write joined=('bias',)")
    if representative not in _REPRESENTATIVES:
        raise DeclarationError(f"{name}: representative is one of {_REPRESENTATIVES}, not {representative!r}")
    check_types(name, manifold, rows)
    if factors is not None:
        if rows != Rows() or joined:
            raise DeclarationError(
                f"{name}: rows and joined are for whole parameters; a Part says which slices are a point"
            )
        owner, path, leaf, declaration = sliced(module, factors, manifold, representative, found, without)
        names = factors.names
        params = tuple(find_parameter(*find_owner(module, part), part) for part in names)
    else:
        owner, leaf = find_owner(module, name)
        path = name.removesuffix(leaf)
        declaration = Declaration(manifold, rows, tuple(joined), found=found)
        params = tuple(find_parameter(owner, part, name) for part in (leaf, *declaration.joined))
        names = (name,)
        if representative == "balanced":
            raise DeclarationError(
                f"{name}: representative='balanced' is for the factors of FixedRank, not for {manifold!r}"
            )
        others = {other.rpartition(".")[2] for other in without if find_owner(module, other)[0] is owner}
        check_ties(owner, leaf, declaration, others)
        check_parts(name, params, manifold, rows)
    manifold = declaration.manifold
    parts, layouts = declaration.arrays(leaf, params)
    placed: Tensor | None = None
    if not any(part.is_meta for part in parts):
        points = gather(parts, layouts)
        placed = place(name, points, manifold, representative)
        refuse_stale(name, points, placed, parts, module.named_buffers(), _RESET_AND_DECLARE)

    def commit() -> None:
        if placed is not None:
            with torch.no_grad():
                scatter_(placed, parts, layouts)
        record(owner, path, leaf, declaration)
        for each in names:
            watch_loads(module, each)

    return commit


def undeclare(module: nn.Module, name: str | Part | Factors) -> None:
    """Remove the declaration of parameter `name`; its values do not change.

    Build a new optimizer afterwards: an existing one keeps the parameter on its manifold.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Linear(8, 4)
        >>> retract.declare(model, "weight", retract.manifolds.Sphere())
        >>> retract.undeclare(model, "weight")
        >>> retract.declared(model)
        {}

    Args:
        module: the owner of the parameter, or any module above it.
        name: name of the declared parameter, dotted as for `declare`; joined parameters are undeclared with it. Of a
            parameter whose module was replaced, only the mark of its declaration is removed.

    Raises:
        DeclarationError: the parameter is not declared, or is joined to another.
    """
    if not isinstance(name, str) or name in {e.name for e in entries(module) if e.declaration.factors is not None}:
        _undeclare_slices(module, str(name))
        return
    owner, leaf = find_owner(module, name)
    found = {entry.leaf: entry for entry in entries(owner) if entry.owner is owner}
    part = owner._parameters.get(leaf)
    if leaf not in found:
        leads = [entry.leaf for entry in found.values() if leaf in entry.declaration.joined]
        if leads:
            raise DeclarationError(
                f"{name} belongs to the points of {leads[0]}; undeclare that, or declare it again without {name}"
            )
        if part is None or marked(part) is None:
            names = ", ".join(entry.name for entry in entries(module)) or "nothing"
            raise DeclarationError(f"{name} is not declared; declared are: {names}")
        unmark(part)
    erase(owner, leaf)
    mark_all(module)  # another name of a tied parameter may still be declared
    forget_loads(module, name)


def declared(model: nn.Module) -> dict[str, Declaration]:
    """Every declaration in `model`.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> retract.declare(model, "0.weight", retract.manifolds.Sphere())
        >>> retract.declared(model)["0.weight"].manifold
        Sphere()

    Returns:
        Qualified parameter name → `Declaration`.

    Raises:
        DeclarationError: a declaration whose parameter is gone (parametrized or flattened later), a parameter whose
            declaration is gone (its module was replaced), tied names on different manifolds, a scripted or exported module.
    """
    return {point.name: point.declaration for point in walk(model)}


@torch.no_grad()
@numerics.full_precision()
def project_(model: nn.Module) -> None:
    """Project every declared parameter onto its manifold, in place: after a reset, ``to_empty`` or manual changes of weights.

    Parameters on the meta device have no values and are skipped.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Linear(8, 4)
        >>> retract.declare(model, "weight", retract.manifolds.Sphere())
        >>> model.reset_parameters()
        >>> retract.project_(model)
        >>> model.weight.norm(dim=1).allclose(torch.ones(4))
        True

    Args:
        model: the network with its declarations.

    Raises:
        DeclarationError: zero and non-finite rows, a move of the rows of a network whose running statistics have been trained.
            Nothing has moved then.
        GeometryError: shapes that no longer fit.
    """
    moves = []
    for name, _, params, declaration, factors in walk(model):
        if factors is None:
            check_parts(name, params, declaration.manifold, declaration.rows)
        if any(part.is_meta for part in params):
            continue
        parts, layouts = declaration.arrays(name, params)
        points = gather(parts, layouts)
        placed = place(name, points, declaration.manifold)
        refuse_stale(name, points, placed, parts, model.named_buffers(), _RESET_AND_PROJECT)
        moves.append((placed, parts, layouts))
    for placed, parts, layouts in moves:
        scatter_(placed, parts, layouts)


def walk(model: nn.Module) -> Iterator[Declared]:
    """Every declaration of `model` with its parameters; tied parameters once.

    Raises `DeclarationError` for a declaration whose parameter is gone (parametrized or flattened later),
    for a parameter whose declaration is gone (its module was replaced), for tied names on different manifolds,
    and for scripted and exported modules.
    """
    if _is_traced(model) and next(entries(model), None) is None:
        raise DeclarationError("a traced or exported module has lost its declarations; use the module it was made from")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise DeclarationError(
                f"{path or 'the model'} is scripted: its declarations are lost; use the eager module"
            )
    seen: dict[int, tuple[str, Declaration, bool]] = {}
    slices: dict[nn.Parameter, list[Part]] = {}
    tied: set[tuple[object, ...]] = set()
    found = [*entries(model)]
    for entry in found:
        names, declaration = entry.names, entry.declaration
        local = declaration.names(entry.leaf)
        parts = tuple(
            find_parameter(*find_owner(entry.owner, leaf), name) for leaf, name in zip(local, names, strict=True)
        )
        first = seen.get(id(parts[0]))
        if declaration.factors is not None:
            key = (
                *map(id, parts),
                declaration.manifold,
                *(replace(part, name="") for part in declaration.factors.parts),
            )
            if key in tied:
                continue
            tied.add(key)
        elif first is not None and first[2] and first[1] == declaration:
            continue
        for name, part, leads in zip(names, parts, (True, *[False] * (len(parts) - 1)), strict=True):
            if id(part) in seen and not (declaration.factors and part in slices):
                other, earlier, _ = seen[id(part)]
                raise DeclarationError(
                    f"{name} and {other} are the same parameter, declared as {declaration} and {earlier}; "
                    "declare it once, or both names alike"
                )
            seen[id(part)] = (name, declaration, leads)
        factors = declaration.factors and declaration.factors.renamed(dict(zip(local, names, strict=True)).__getitem__)
        if factors is not None:
            for name, part in zip(names, parts, strict=True):
                slices.setdefault(part, []).extend(p for p in factors.parts if p.name == name)
                covered(tuple(slices[part]), tuple(part.shape))
        yield Declared(entry.name if factors else names[0], names, parts, declaration, factors)
    geometries = geometries_of(found)
    for part in slices:
        before = marked(part)
        kept = before.geometries if before is not None and before.in_slices else []
        gone = [each for each in kept if each not in geometries[part][1]]
        if gone:
            name, _, _ = seen[id(part)]
            raise DeclarationError(
                f"{name} was also declared on {gone[0]}, together with parameters of other modules, and the module that has this "
                "declaration is not in this model. Pass the model on which it was declared, or declare again"
            )
    mark_entries(found)
    for name, p in model.named_parameters():
        lost = marked(p)
        if lost is not None and id(p) not in seen:
            raise DeclarationError(
                f"{name} was declared on {lost.geometry}, by the name {lost.name}, but no module of this model has the declaration: "
                "its module was replaced (quantization-aware training, symbolic tracing, a swap) by one that took the parameter "
                f"only. Declare it under this name, or remove the mark with retract.undeclare(model, {name!r})"
            )


def _is_traced(model: nn.Module) -> bool:
    """Whether `model` was made from another module by torch.fx or torch.export."""
    unflatten = sys.modules.get("torch.export.unflatten")
    return isinstance(model, torch.fx.GraphModule) or (
        unflatten is not None and isinstance(model, unflatten.UnflattenedModule)
    )


def _undeclare_slices(module: nn.Module, name: str) -> None:
    found = {entry.name: entry for entry in entries(module)}
    if name not in found:
        raise DeclarationError(f"{name} is not declared; declared are: {', '.join(found) or 'nothing'}")
    entry = found[name]
    erase(entry.owner, entry.leaf)
    for each in entry.names:
        forget_loads(module, each)
