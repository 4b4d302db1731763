"""Sharded parameters (DTensors): their division among processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ...errors import GeometryError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Cut", "cut_of", "is_sharded", "whole", "write_"]


class Cut(NamedTuple):
    """The division of a DTensor along one dimension of its mesh: equal runs of `axis`, one per process, the last ones
    shorter or empty."""

    axis: int | None
    """The axis that is cut; None: replicated."""
    length: int
    """The length of that axis."""
    size: int
    """The number of processes."""
    rank: int
    """The rank of this process among them."""
    group: Any
    """Their process group."""

    @property
    def run(self) -> int:
        """The length of a full run."""
        return -(-self.length // self.size)

    def local(self, full: Tensor) -> Tensor:
        """The part of this process in the whole tensor, a view."""
        if self.axis is None:
            return full
        start = min(self.rank * self.run, self.length)
        return full.narrow(self.axis, start, min(self.run, self.length - start))

    def pack(self, local: Tensor) -> Tensor:
        """A shard as one row of numbers, padded to a full run; of the same length on every process."""
        assert self.axis is not None
        rows = local.movedim(self.axis, 0)
        filled = rows.new_zeros(self.run, *rows.shape[1:])
        filled[: rows.shape[0]] = rows
        return filled.reshape(-1)

    def unpack(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The whole tensor of `shape` from the rows of all processes, (size, numbers)."""
        assert self.axis is not None
        others = [length for axis, length in enumerate(shape) if axis != self.axis]
        full = rows.reshape(self.size * self.run, *others)[: self.length]
        return full.movedim(0, self.axis).contiguous()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether `tensor` is a DTensor."""
    module = sys.modules.get(
        "torch.distributed.tensor"
    )  # importing it takes most of a second; without it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def cut_of(name: str, tensor: DTensor) -> Cut:
    """The division of `tensor`, parameter `name`, among processes.

    Raises `GeometryError` for unsupported layouts: cuts along two dimensions of a mesh, strided cuts, and pending sums.
    """
    from torch.distributed.tensor import Shard

    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise GeometryError(f"{name} is a pending sum ({placements}); redistribute it to Shard or Replicate")
    along = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if len(along) > 1 or any(type(placements[dim]) is not Shard for dim in along):
        raise GeometryError(
            f"{name} has the placements {placements}: points may be cut along one axis (FSDP2, HSDP, or tensor parallelism), not "
            "along several at once. Leave the parameter undeclared, or use one kind of sharding"
        )
    if not along:
        return Cut(None, 0, 1, 0, None)
    (dim,) = along
    placement = placements[dim]
    assert isinstance(placement, Shard)
    axis = placement.dim % tensor.ndim
    return Cut(axis, tensor.shape[axis], mesh.size(dim), mesh.get_local_rank(dim), mesh.get_group(dim))


def whole(tensor: Tensor) -> Tensor:
    """`tensor` as a plain tensor: gathered from all processes if it is a DTensor, otherwise unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def write_(tensor: DTensor, full: Tensor) -> None:
    """Write the part of this process in `full` into the DTensor `tensor`."""
    tensor.to_local().copy_(cut_of("the tensor", tensor).local(full))
