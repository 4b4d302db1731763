"""The parameters of a declaration: found by name, and checked."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ...errors import DeclarationError, GeometryError
from .. import numerics
from ..base import Manifold
from ..euclidean import Euclidean
from .records import Declaration, entries
from .rows import Rows, overlaps

__all__ = ["FLATTENED", "check_memory", "check_parts", "check_ties", "check_types", "find_owner", "find_parameter"]

FLATTENED = (
    "was flattened by FSDP1, and has no rows any more. Use torch.distributed.fsdp.fully_shard (FSDP2), which keeps the shape, or "
    "DistributedDataParallel"
)


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


def find_owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that parameter `name` of `module` belongs to, and its name there."""
    path, _, leaf = name.rpartition(".")
    try:
        return module.get_submodule(path), leaf
    except AttributeError as error:
        raise DeclarationError(f"{name}: {error}; names are those of named_parameters() of the module passed") from None


def find_parameter(owner: nn.Module, leaf: str, name: str) -> nn.Parameter:
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


def check_ties(owner: nn.Module, leaf: str, declaration: Declaration, without: Collection[str]) -> None:
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
