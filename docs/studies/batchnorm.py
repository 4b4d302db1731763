"""Networks with BatchNorm: CIFAR-10, four convolutions, eight epochs."""

from __future__ import annotations

from pathlib import Path

import torch
from experiments.cifar_files import cifar10
from torch import Tensor, nn

from .loop import Batches, Study

__all__ = ["BatchNorm", "convolutional"]

_HELD_OUT = 5_000
_BATCH = 128
_EPOCHS = 8
_STEPS = 351
"""Of an epoch, of 45,000 images without the last 72; the number of all, 2,808, is rounded down to a multiple of 16."""


class BatchNorm:
    """CIFAR-10 in memory, from the files in `folder`."""

    name = "batchnorm"
    title = "small network, eight epochs"
    page = "batchnorm"
    methods: tuple[str, ...] = (
        "sgd_decay",
        "psi_sgdm",
        "psi_sgdm_nesterov",
        "adamw_decay",
        "psi_adam",
        "sgd_plain",
        "psi_sgd",
        "muonh",
        "psimuon",
        "muon_decay",
        "sgdp",
        "adamp",
        "sgdg",
        "adamg",
    )
    pairs: tuple[tuple[str, str], ...] = (
        ("psi_sgd", "sgd_plain"),
        ("psi_sgdm", "sgd_plain"),
        ("psi_sgdm_nesterov", "sgd_plain"),
        ("psi_sgdm_nesterov", "psi_sgdm"),
        ("psi_adam", "adamw_decay"),
        ("muon_decay", "muonh"),
        ("muonh", "psimuon"),
        ("muon_decay", "psimuon"),
        ("muonh", "adamw_decay"),
        ("psimuon", "psi_sgdm_nesterov"),
    )
    budget = 15
    swept: int | None = None
    points = 16
    steps = _EPOCHS * _STEPS // points * points
    warm_up = 0
    scores: tuple[str, ...] = ("accuracy", "loss")
    centre_of_rest: float | None = None
    after: type[Study] | None = None

    def __init__(self, folder: Path) -> None:
        split = cifar10(folder)
        order = torch.randperm(len(split.train_x), generator=torch.Generator().manual_seed(0))
        train, held_out = order[:-_HELD_OUT], order[-_HELD_OUT:]
        x = split.train_x[train]
        counts = torch.stack([x[:, channel].flatten().bincount(minlength=256) for channel in range(3)]).double()
        values = torch.arange(256, dtype=torch.float64)
        mean = counts @ values / counts.sum(1)
        deviation = (counts @ values.square() / counts.sum(1) - mean.square()).sqrt()
        # Of a line of pixels, since arithmetic with rows of three numbers is slow.
        self._mean, self._scale = mean.float().repeat(32), deviation.reciprocal().float().repeat(32)
        # Black borders, so the padding comes before the normalization; then the mirrored images.
        padded = nn.functional.pad(x, (4, 4, 4, 4))
        self._x = torch.cat([padded, padded.flip(3)]).permute(0, 2, 3, 1).contiguous()
        self._y = split.train_y[train]
        self._held_out = _lines(split.train_x[held_out]), split.train_y[held_out]
        self._test = _lines(split.test_x), split.test_y

    def network(self) -> nn.Module:
        """Convolutions of 16, 32, 48 and 48 channels with BatchNorm and ReLU on 8 × 8 and 4 × 4 pixels, the mean over these, and a
        linear layer: 41,674 parameters."""
        return convolutional(normalized=True)

    def example(self) -> Tensor:
        """The first 32 held-out images."""
        return self._prepared(self._held_out[0][:32])

    def batches(self, generator: torch.Generator) -> Batches:
        """Batches of 128 images in a new order each epoch, each image cropped from itself with 4 black pixels around it and mirrored
        with probability ½."""
        side, count = 40, len(self._y)
        window = self._x.as_strided((2 * count, 9, 9, 32, 96), (side * side * 3, side * 3, 3, side * 3, 1))
        while True:
            order = torch.randperm(count, generator=generator)
            mirrored = torch.randint(2, (count,), generator=generator) * count
            rows, columns = torch.randint(9, (2, count), generator=generator)
            for part in (slice(first, first + _BATCH) for first in range(0, count - _BATCH + 1, _BATCH)):
                x = window[order[part] + mirrored[part], rows[part], columns[part]]
                yield self._prepared(x), self._y[order[part]]

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(network(x), y)

    def held_out(self, network: nn.Module) -> dict[str, float]:
        """Cross-entropy and the share of right answers in %, on 5,000 training images that are left out of training."""
        return self._scores(network, *self._held_out)

    def test(self, network: nn.Module) -> dict[str, float]:
        """The same on the 10,000 test images."""
        return self._scores(network, *self._test)

    def _scores(self, network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        outputs = torch.cat([network(self._prepared(part)) for part in x.split(500)])
        loss = nn.functional.cross_entropy(outputs.double(), y)
        return {"loss": loss.item(), "accuracy": (outputs.argmax(1) == y).double().mean().item() * 100.0}

    def _prepared(self, x: Tensor) -> Tensor:
        """Lines of pixels, (N, 32, 96) in bytes, to normalized images, (N, 3, 32, 32) in the memory order channels_last."""
        return x.float().sub_(self._mean).mul_(self._scale).view(-1, 32, 32, 3).permute(0, 3, 1, 2)


def convolutional(normalized: bool) -> nn.Module:
    """The network of `BatchNorm`, or without normalization and with biases in its place. Then ``hidden`` names
    the weights and biases of the convolutions."""
    layers: list[nn.Module] = []
    for before, width, size, stride in ((3, 16, 6, 4), (16, 32, 3, 1), (32, 48, 3, 2), (48, 48, 3, 1)):
        convolution = nn.Conv2d(before, width, size, stride, 1, bias=not normalized)
        layers += [convolution, *[nn.BatchNorm2d(width)] * normalized, nn.ReLU()]
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    if not normalized:
        names = (
            f"{i}.{kind}"
            for i, layer in enumerate(network)
            if isinstance(layer, nn.Conv2d)
            for kind in ("weight", "bias")
        )
        network.hidden = (*names,)  # type: ignore[assignment]
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _lines(x: Tensor) -> Tensor:
    """Images, (N, 3, 32, 32), as lines of pixels, (N, 32, 96)."""
    return x.permute(0, 2, 3, 1).flatten(2)
