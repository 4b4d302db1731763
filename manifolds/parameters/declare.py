"""Declarations: the manifold of a parameter, stored on its module as plain values.

A declaration is in ``module.__dict__``, not on the tensor: parameters stay plain `nn.Parameter`s, so nothing is lost by
deepcopy, pickling, ``.to``, ``load_state_dict(assign=True)``, meta-device init, DDP or FSDP2. The marks on tensors
(`records`) are used only to raise errors where a declared parameter would train in flat space.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ...errors import DeclarationError, GeometryError
from .. import numerics
from ..base import Manifold
from ..euclidean import Euclidean
from .placing import forget_loads, place, refuse_stale, watch_loads
from .records import Declaration, entries, erase, mark, mark_all, marked, record, unmark
from .rows import Rows, gather, overlaps, scatter_

__all__ = [
    "FLATTENED",
    "Declared",
    "check_memory",
    "check_parts",
    "check_types",
    "declare",
    "declared",
    "preparing",
    "project_",
    "undeclare",
    "walk",
]

FLATTENED = (
    "was flattened by FSDP1, and has no rows any more. Use torch.distributed.fsdp.fully_shard (FSDP2), which keeps the shape, or "
    "DistributedDataParallel"
)
_REPRESENTATIVES = ("keep", "unit")
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

    names: tuple[str, ...]
    parts: tuple[nn.Parameter, ...]
    declaration: Declaration


def declare(
    module: nn.Module,
    name: str,
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
            the nearest point in either case.

    Raises:
        DeclarationError: no such parameter, lazy, complex or integer; a zero or non-finite row; a move of
            the rows of a network whose running statistics have been trained; a tied name declared
            otherwise.
        GeometryError: the parameter's shape does not fit `rows` and `manifold`.
    """
    preparing(module, name, manifold, rows, joined, representative)()


@torch.no_grad()
@numerics.full_precision()
def preparing(
    module: nn.Module,
    name: str,
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
    if not isinstance(name, str):
        raise DeclarationError(f"name={name!r}: the name of a parameter is a string, as named_parameters() gives it")
    if not isinstance(joined, list | tuple) or not all(isinstance(part, str) for part in joined):
        raise DeclarationError(f"{name}: joined={joined!r} is not a list of names; write joined=('bias',)")
    if representative not in _REPRESENTATIVES:
        raise DeclarationError(f"{name}: representative is one of {_REPRESENTATIVES}, not {representative!r}")
    check_types(name, manifold, rows)
    owner, leaf = _owner(module, name)
    declaration = Declaration(manifold, rows, tuple(joined), found)
    parts = tuple(_parameter(owner, part, name) for part in (leaf, *declaration.joined))
    _check_ties(
        owner, leaf, declaration, {other.rpartition(".")[2] for other in without if _owner(module, other)[0] is owner}
    )
    check_parts(name, parts, manifold, rows)
    layouts = [rows.layout(part, manifold.event_ndim) for part in parts]
    placed: Tensor | None = None
    if not any(part.is_meta for part in parts):
        points = gather(parts, layouts)
        placed = place(name, points, manifold, representative)
        refuse_stale(name, points, placed, parts, module.named_buffers(), _RESET_AND_DECLARE)

    def commit() -> None:
        if placed is not None:
            with torch.no_grad():
                scatter_(placed, parts, layouts)
        record(owner, leaf, name, declaration)
        watch_loads(module, name)

    return commit


def undeclare(module: nn.Module, name: str) -> None:
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
    owner, leaf = _owner(module, name)
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
    return {point.names[0]: point.declaration for point in walk(model)}


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
    for names, parts, declaration in walk(model):
        check_parts(names[0], parts, declaration.manifold, declaration.rows)
        if any(part.is_meta for part in parts):
            continue
        layouts = [declaration.rows.layout(part, declaration.manifold.event_ndim) for part in parts]
        points = gather(parts, layouts)
        placed = place(names[0], points, declaration.manifold)
        refuse_stale(names[0], points, placed, parts, model.named_buffers(), _RESET_AND_PROJECT)
        moves.append((placed, parts, layouts))
    for placed, parts, layouts in moves:
        scatter_(placed, parts, layouts)


def check_types(name: str, manifold: object, rows: object) -> None:
    """Raise `DeclarationError` unless these are a `Manifold` and a `Rows`."""
    if not isinstance(manifold, Manifold):
        of_geoopt = type(manifold).__module__.startswith("geoopt")
        remedy = "wrap it in retract.manifolds.from_geoopt(…)" if of_geoopt else "pass an instance such as Sphere()"
        raise DeclarationError(f"{name}: {manifold!r} is not a Manifold; {remedy}")
    if not isinstance(rows, Rows):
        raise DeclarationError(
            f"{name}: rows={rows!r} is not a Rows; write Rows(dim=…), Rows(blocks=…) or Rows.whole()"
        )


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
    for entry in entries(model):
        names, declaration = entry.names, entry.declaration
        parts = tuple(
            _parameter(entry.owner, leaf, name)
            for leaf, name in zip((entry.leaf, *declaration.joined), names, strict=True)
        )
        first = seen.get(id(parts[0]))
        if first is not None and first[2] and first[1] == declaration:
            continue
        for name, part, leads in zip(names, parts, (True, *[False] * len(declaration.joined)), strict=True):
            if id(part) in seen:
                other, earlier, _ = seen[id(part)]
                raise DeclarationError(
                    f"{name} and {other} are the same parameter, declared as {declaration} and {earlier}; "
                    "declare it once, or both names alike"
                )
            seen[id(part)] = (name, declaration, leads)
            mark(part, name, declaration.geometry)
        yield Declared(names, parts, declaration)
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


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that parameter `name` of `module` belongs to, and its name there."""
    path, _, leaf = name.rpartition(".")
    try:
        return module.get_submodule(path), leaf
    except AttributeError as error:
        raise DeclarationError(f"{name}: {error}; names are those of named_parameters() of the module passed") from None


def _parameter(owner: nn.Module, leaf: str, name: str) -> nn.Parameter:
    parameter = owner._parameters.get(leaf)
    if parameter is None:
        if is_parametrized(owner, leaf):
            path = f"parametrizations.{leaf}"
            sources = ", ".join(f"{path}.{key}" for key, _ in owner.get_submodule(path).named_parameters(recurse=False))
            raise DeclarationError(
                f"{name} is computed by a parametrization, from {sources}: parametrize before you declare, and declare "
                "those, or remove it with torch.nn.utils.parametrize.remove_parametrizations"
            )
        if leaf in owner._modules:
            raise DeclarationError(f"{name} is a module; name a parameter of it, such as {name}.weight")
        has = ", ".join(key for key, value in owner._parameters.items() if value is not None) or "none"
        raise DeclarationError(
            f"{name}: {type(owner).__name__} has no parameter {leaf!r} (it has: {has}); if a "
            "wrapper such as FSDP1 has replaced it, wrap first, and declare the new parameter"
        )
    if getattr(parameter, "_fsdp_flattened", False):
        raise DeclarationError(f"{name} {FLATTENED}")
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise DeclarationError(f"{name} is a lazy parameter without a shape; run the model once, then declare it")
    if parameter.dtype not in numerics.DTYPES:
        raise DeclarationError(
            f"{name} is {parameter.dtype}; the manifolds are real: only floating-point parameters fit, of float64, float32, "
            "float16 or bfloat16"
        )
    return parameter


def _check_ties(owner: nn.Module, leaf: str, declaration: Declaration, without: Collection[str]) -> None:
    ids = {id(owner._parameters[part]) for part in (leaf, *declaration.joined)}
    if len(ids) <= len(declaration.joined):
        raise DeclarationError(f"{leaf} and {', '.join(declaration.joined)} name one parameter twice")
    for entry in entries(owner):
        other, earlier = entry.leaf, entry.declaration
        if entry.owner is not owner or other == leaf or other in without:
            continue
        if ids & set(map(id, entry.parts)) and (earlier != declaration or declaration.joined):
            raise DeclarationError(f"{leaf} and {other} are the same parameter, but {other} is declared as {earlier}")


def check_parts(name: str, parts: Sequence[Tensor], manifold: Manifold, rows: Rows) -> None:
    """Raise `GeometryError` unless the parameters `parts` can be cut into (joint) points of `manifold`, and be written to."""
    for part in parts:
        check_memory(name, part)
    if len(parts) == 1:
        error = rows.error(parts[0].shape, manifold)
        if error:
            raise GeometryError(f"{name} of shape {tuple(parts[0].shape)}: {error}")
        return
    if manifold.event_ndim != 1:
        raise GeometryError(f"{name}: {manifold!r} has no joint points; joined is for manifolds of vectors")
    for part in parts:
        # The entries of a bias are output channels, whatever the dimension of the channels in its weight.
        cut = Rows() if part.ndim == 1 and rows.dim == 1 else rows
        error = cut.error(part.shape, Euclidean(1))
        if error:
            raise GeometryError(f"{name}, a part of shape {tuple(part.shape)}: {error}")
    counts = [rows.layout(part, 1).batch[0] for part in parts]
    if len(set(counts)) != 1:
        raise GeometryError(f"{name} and its joined parameters have {counts} points: all parts need the same number")


def check_memory(name: str, tensor: Tensor) -> None:
    """Raise `GeometryError` if elements of `tensor` share memory, since they cannot be written independently."""
    if overlaps(tensor):
        raise GeometryError(
            f"{name} of shape {tuple(tensor.shape)} has strides {tensor.stride()}: some of its elements share memory, and "
            "cannot move independently; use tensor.clone(), or tensor.contiguous() of an expanded one"
        )
