"""Sharded parameters, DTensors: how one is dealt out among processes, and which points are whole in one shard."""

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
    """How a DTensor is dealt out along one dimension of its mesh: in as many equal runs of `axis`, the last ones shorter
    or empty."""

    axis: int | None
    """The axis that is cut; None: every process has all of it."""
    length: int
    """Of that axis."""
    size: int
    """Number of processes that share it."""
    rank: int
    """Which of them this is."""
    group: Any
    """The process group of them."""

    @property
    def run(self) -> int:
        """Length of a full run."""
        return -(-self.length // self.size)

    def local(self, full: Tensor) -> Tensor:
        """This process' part of the whole tensor, a view."""
        if self.axis is None:
            return full
        start = min(self.rank * self.run, self.length)
        return full.narrow(self.axis, start, min(self.run, self.length - start))

    def pack(self, local: Tensor) -> Tensor:
        """A shard as one row of numbers, filled up to a full run; the same length on every process."""
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
    """How `tensor`, parameter `name`, is dealt out.

    Raises `GeometryError` for layouts that are not supported: cut along two dimensions of a mesh, in strides, or sums
    that are pending.
    """
    from torch.distributed.tensor import Shard

    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise GeometryError(f"{name} is a pending sum ({placements}); redistribute it to Shard or Replicate")
    along = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if len(along) > 1 or any(type(placements[dim]) is not Shard for dim in along):
        raise GeometryError(
            f"{name} is laid out as {placements}: points are followed through one cut along one axis (FSDP2, HSDP, or tensor "
            "parallelism), not through several at once. Leave the parameter undeclared, or drop one of the two"
        )
    if not along:
        return Cut(None, 0, 1, 0, None)
    (dim,) = along
    placement = placements[dim]
    assert isinstance(placement, Shard)
    axis = placement.dim % tensor.ndim
    return Cut(axis, tensor.shape[axis], mesh.size(dim), mesh.get_local_rank(dim), mesh.get_group(dim))


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor` as a plain tensor: gathered from all processes if it is a DTensor, otherwise itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def write_(tensor: DTensor, full: Tensor) -> None:
    """Write this process' part of `full` into the DTensor `tensor`."""
    tensor.to_local().copy_(cut_of("the tensor", tensor).local(full))
