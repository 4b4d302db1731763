"""Tables 1 and 2 and Figure 3 of Yi (UAI 2022): CIFAR ResNets under every method, each with the same sweep and schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from retract.errors import RetractError
from retract.psi.data import Split
from torch import Tensor

from .cifar_files import cifar10, cifar100
from .methods import METHODS, label
from .resnet import cifar_resnet
from .study import Settings, trainer
from .training import Epoch, Record, Trainer, finished

__all__ = ["Config", "Images", "best", "load", "prepare", "sweep", "train"]

_HELD_OUT = 5_000
"""Training images that score a sweep. Runs of a sweep never see the test images."""
_TEST_BATCH = 500
_POWERS = (-1, 0, 1, 2)
"""The rates of a sweep, by their place in …, 0.1, 0.3, 1, 3, 10, 30, … times the published one; the same for every method."""
_DROPS = (0.3, 0.6, 0.8)
"""60, 120 and 160 of 200 epochs."""

Report = Callable[["Config", int, Epoch], None]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What a run depends on."""

    dataset: str = "cifar10"
    depth: int = 20
    images: int = 0
    """Of the training set, the first in a fixed random order; 0 takes all."""
    held_out: bool = False
    """Score on 5,000 training images that are left out of training, not on the test set."""

    @property
    def name(self) -> str:
        """For a folder: everything that tells runs of one study apart."""
        method = label(self.method, self.lr, self.weight_decay, self.orthogonality)
        share = f"-{self.images}" * (self.images > 0) + "-held-out" * self.held_out
        return f"{self.dataset}-resnet{self.depth}-{method}-{self.epochs}-epochs{share}-seed{self.seed}"


class Images:
    """A data set that stays on one device as bytes, 3 × 32 × 32; batches are cut from it there.

    Raises `RetractError` if there are fewer images than `config` asks for.
    """

    def __init__(self, split: Split, config: Config, device: torch.device) -> None:
        if config.images > len(split.train_x) - _HELD_OUT * config.held_out:
            raise RetractError(
                f"{config.images} images: the training set has {len(split.train_x)}, held-out ones included"
            )
        order = torch.randperm(len(split.train_x), generator=torch.Generator().manual_seed(0))
        test_x, test_y = split.test_x, split.test_y
        if config.held_out:
            order, rest = order[:-_HELD_OUT], order[-_HELD_OUT:]
            test_x, test_y = split.train_x[rest], split.train_y[rest]
        if config.images:
            order = order[: config.images]
        x = split.train_x[order]
        counts = torch.stack([x[:, channel].flatten().bincount(minlength=256) for channel in range(3)]).double()
        bytes_ = torch.arange(256, dtype=torch.float64)
        mean = counts @ bytes_ / counts.sum(1)
        std = (counts @ bytes_.square() / counts.sum(1) - mean.square()).sqrt()
        self._mean, self._std = (t.float().view(3, 1, 1).to(device) for t in (mean, std))
        # Torchvision's crops are of black borders, so the padding comes before the normalization.
        self._x = torch.nn.functional.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1).contiguous().to(device)
        self._y = split.train_y[order].to(device)
        self._test_x, self._test_y = test_x.to(device), test_y.to(device)
        self._batch = config.batch
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._window = torch.arange(32, device=device)
        self.device = device
        self.count = len(order)
        """How many train."""

    def _prepared(self, x: Tensor) -> Tensor:
        return ((x.float() - self._mean) / self._std).contiguous(memory_format=self._layout)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What one epoch shows, on the device: the order of the images, (N,), the corners of the windows that are cut from the
        images with 4 black pixels around them, (N, 2), and which are mirrored, each with probability ½, (N,)."""
        order = torch.randperm(self.count, generator=generator)
        corners = torch.randint(9, (self.count, 2), generator=generator)
        mirrored = torch.randint(2, (self.count,), generator=generator)
        order, corners, mirrored = (t.to(self.device) for t in (order, corners, mirrored))
        return order, corners, mirrored

    def cut(self, drawn: tuple[Tensor, Tensor, Tensor], part: Tensor) -> tuple[Tensor, Tensor]:
        """The batch at the places `part` of what `draw` drew."""
        chosen, corners, mirrored = (t[part] for t in drawn)
        rows, columns = (corners[:, :, None] + self._window).unbind(1)
        columns = torch.where(mirrored[:, None] == 1, columns.flip(1), columns)
        x = self._x[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self._prepared(x.permute(0, 3, 1, 2)), self._y[chosen]

    def train(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in batches, of which the last may be smaller."""
        drawn = self.draw(generator)
        for part in torch.arange(self.count, device=self.device).split(self._batch):
            yield self.cut(drawn, part)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images to score on, as they are."""
        for x, y in zip(self._test_x.split(_TEST_BATCH), self._test_y.split(_TEST_BATCH), strict=True):
            yield self._prepared(x), y


def load(dataset: str, folder: Path) -> Split:
    """CIFAR-10 or CIFAR-100 from `folder`; raises as `cifar10` does."""
    return (cifar10 if dataset == "cifar10" else cifar100)(folder)


def prepare(config: Config, images: Images) -> Trainer:
    """Everything a run needs, at its first step. Raises `RetractError` for options that do not go together."""
    device = images.device
    torch.manual_seed(config.seed)
    model = cifar_resnet(config.depth, 10 if config.dataset == "cifar10" else 100).to(device)
    example, _ = next(images.train(torch.Generator().manual_seed(0)))
    return trainer(model, example[:8], config, _DROPS, images.train, images.test)


def train(config: Config, split: Split, device: torch.device, out: Path, report: Report) -> Record:
    """One run, in the folder ``out / config.name``; goes on where it was interrupted.

    ``report(config, number, epoch)`` is called after every epoch. Raises as `Images` and `prepare` do.
    """
    folder, settings = out / config.name, asdict(config)
    found = finished(folder, settings)
    if found is not None:
        return found
    return prepare(config, Images(split, config, device)).run(folder, settings, partial(report, config))


def sweep(config: Config, split: Split, device: torch.device, out: Path, report: Report) -> list[Record]:
    """Runs of `config` at four rates, 0.3, 1, 3 and 10 times the published one, scored on held-out training images, and at
    further ones (0.1, 30, …) while the best is at an edge; ordered by rate. `best` tells which."""

    def at(power: int) -> Record:
        factor = (1, 3)[power % 2] * 10.0 ** (power // 2)
        trial = replace(config, lr=float(f"{factor * METHODS[config.method].lr:.3g}"), held_out=True)
        return train(trial, split, device, out, report)

    records = {power: at(power) for power in _POWERS}
    while (edge := max(records, key=lambda power: records[power].accuracy)) in (min(records), max(records)):
        further = edge - 1 if edge == min(records) else edge + 1
        records[further] = at(further)
    return [records[power] for power in sorted(records)]


def best(records: Sequence[Record]) -> float:
    """The learning rate of the most accurate run of a sweep."""
    return max(records, key=lambda record: record.accuracy).settings["lr"]
