"""The last block of Table 1 of Yi (UAI 2022): torchvision's ResNets on ImageNet, on one device or several under torchrun."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from retract.errors import RetractError
from torch import Tensor

from .methods import label
from .study import Settings, trainer
from .training import Record

__all__ = ["Config", "join_torchrun", "train"]

_DROPS = (0.3, 0.6, 0.9)
"""30, 60 and 90 of 100 epochs."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, as everybody normalizes."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What a run depends on."""

    arch: str = "resnet18"
    """A ResNet of `torchvision.models`: resnet18, resnet34, resnet50."""
    epochs: int = 100
    size: int = 224
    """Height and width that the network sees; evaluation cuts it from the middle of images 8 / 7 as large."""

    @property
    def name(self) -> str:
        """For a folder."""
        method = label(self.method, self.lr, self.weight_decay, self.orthogonality)
        return f"imagenet-{self.arch}-{method}-{self.epochs}-epochs-seed{self.seed}"


def train(
    config: Config, folder: Path, device: torch.device, workers: int, out: Path, report: Callable[..., None]
) -> Record:
    """One run on ``folder/train`` and ``folder/val``, a folder of images per class in each, as torchvision's ImageFolder reads
    them. Under torchrun every process calls this, with its own device; process 0 writes and reports.

    Raises `RetractError` where torchvision is missing or does not load, where a folder is missing, and for a batch that the
    processes cannot share.
    """
    vision = _torchvision()
    world = dist.get_world_size() if dist.is_initialized() else 1
    if config.batch % world:
        raise RetractError(
            f"batch {config.batch}: {world} processes cannot share it equally; take a multiple of {world}"
        )
    loaders = _Loaders(vision, config, folder, device, workers, world)
    torch.manual_seed(config.seed)
    model = getattr(vision.models, config.arch)(num_classes=loaders.classes).to(device)
    example = torch.randn(4, 3, config.size, config.size, device=device)
    run = trainer(model, example, config, _DROPS, loaders.train, loaders.test)
    return run.run(out / config.name, {**asdict(config), "processes": world, "workers": workers}, report)


class _Loaders:
    """Batches of ImageFolders: every process gets its own share of each."""

    def __init__(
        self, vision: Any, config: Config, folder: Path, device: torch.device, workers: int, world: int
    ) -> None:
        for part in ("train", "val"):
            if not (folder / part).is_dir():
                raise RetractError(
                    f"no folder {folder / part}: --data-dir is the folder with train and val, each with a folder of images per "
                    "class, as in ImageNet's ILSVRC2012 (https://image-net.org/download, free for research)"
                )
        t, size = vision.transforms, config.size
        last = [t.ToTensor(), t.Normalize(_MEAN, _STD)]
        enlarged = math.ceil(size * 8 / 7)
        try:
            self._train = vision.datasets.ImageFolder(
                str(folder / "train"), t.Compose([t.RandomResizedCrop(size), t.RandomHorizontalFlip(), *last])
            )
            self._test = vision.datasets.ImageFolder(
                str(folder / "val"), t.Compose([t.Resize(enlarged), t.CenterCrop(size), *last])
            )
        except FileNotFoundError as error:
            raise RetractError(f"{folder} has no images in folders by class: {error}") from error
        self.classes = len(self._train.classes)
        self._batch, self._workers, self._world = config.batch // world, workers, world
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._device = device

    def _batches(self, data: Any, order: Tensor, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        loader = torch.utils.data.DataLoader(
            data,
            self._batch,
            sampler=order.tolist(),
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            generator=generator,
            drop_last=generator is not None,  # BatchNorm cannot train on a last batch of one
        )
        for x, y in loader:
            moved = x.to(self._device, non_blocking=True, memory_format=self._layout)
            yield moved, y.to(self._device, non_blocking=True)

    def train(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, each process an equal share; what cannot be shared is left out."""
        order = torch.randperm(len(self._train), generator=generator)
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)) + self._rank)
        if not self._workers:  # then images are read, and cropped, in this process
            torch.manual_seed(own.initial_seed())
        share = len(order) // self._world
        return self._batches(self._train, order[self._rank * share : (self._rank + 1) * share], own)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, each process its share."""
        return self._batches(self._test, torch.arange(self._rank, len(self._test), self._world), None)


def _torchvision() -> Any:
    try:
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        raise RetractError(
            f"torchvision does not load ({type(error).__name__}: {error}): this experiment takes its ResNets and its ImageFolder. "
            "Install the torchvision that belongs to your torch, https://pytorch.org/get-started"
        ) from error
    return torchvision


def join_torchrun(device: torch.device) -> torch.device:
    """Under torchrun: enter the process group, and take the GPU of this process. Without: nothing."""
    if "LOCAL_RANK" not in os.environ:
        return device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
