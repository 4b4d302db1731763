"""What the runs of Tables 1 and 2 have in common, whatever the images: their settings, and how one is set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .methods import build
from .training import Batches, Trainer, drops

__all__ = ["Settings", "trainer"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run depends on, beside network and images."""

    method: str = "psi-sgdm"
    lr: float = 0.1
    weight_decay: float = 0.0
    """Of all parameters, or, where the method has a manifold, of the others only."""
    orthogonality: float = 0.0
    """α of SGDG and Adam-G."""
    epochs: int = 200
    batch: int = 128
    """Over all processes."""
    seed: int = 0
    """Of initialization, order, crops and flips."""
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False


def trainer(
    model: nn.Module,
    example: Tensor,
    settings: Settings,
    shares: Sequence[float],
    train: Callable[[torch.Generator], Batches],
    test: Callable[[], Batches],
) -> Trainer:
    """A run of `model` at its first step.

    Args:
        model: in train mode, on the device of `example`.
        example: one batch of inputs, as for `build`.
        settings: of the run.
        shares: of the epochs, after which the rate drops.
        train: as in `Trainer`.
        test: as in `Trainer`.

    Raises `RetractError` for options that do not go together.
    """
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build(model, example, settings.method, settings.lr, settings.weight_decay, settings.orthogonality)
    schedule = drops(optimizer, settings.epochs, shares)
    generator = torch.Generator().manual_seed(settings.seed)
    return Trainer(model, optimizer, schedule, generator, train, test, settings.bf16, settings.compile)
