"""Studies of seconds, for the tests of docs/studies: a small network with BatchNorm on random data, a small GPT on words."""

import random

import torch
from studies.transformers import Transformers
from torch import nn

FILE = """from torch.optim import SGD

from studies.split import split

TITLE = "Mine"
KNOBS = {"lr": 0.1, "rest": 0.1}


def optimizers(network, example, lr, rest):
    weights, others = split(network, example)
    return [SGD([{"params": weights, "lr": lr}, {"params": others, "lr": rest}], momentum=0.9)]
"""
"""What a reader writes to add a method."""


class Words(Transformers):
    """A GPT of width 32 with two heads on a text of six words in random order, which is written into `folder`."""

    name = "words"
    steps = 16
    width = 32
    context = 16

    def __init__(self, folder):
        draw = random.Random(0)
        words = (draw.choice(("to", "be", "or", "not", "that", "is")) for _ in range(1_500))
        (folder / "input.txt").write_text(" ".join(words))
        super().__init__(folder)


class Tiny:
    """Two convolutions, and labels that a linear map of the image decides."""

    name = "tiny"
    title = "Tiny"
    page = "tiny"
    methods = ("sgd_decay", "psi_sgdm")
    pairs = ()
    budget = 6
    swept = None
    points = 16
    steps = 16
    warm_up = 0
    scores = ("accuracy", "loss")
    centre_of_rest = None
    after = None

    def __init__(self, folder=None):
        generator = torch.Generator().manual_seed(7)
        self._x = torch.randn(96, 3, 6, 6, generator=generator)
        self._y = (self._x.flatten(1) @ torch.randn(108, 3, generator=generator)).argmax(1)

    def network(self):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 3),
        )

    def example(self):
        return self._x[:16]

    def batches(self, generator):
        while True:
            chosen = torch.randint(64, (16,), generator=generator)
            yield self._x[chosen], self._y[chosen]

    def loss(self, network, x, y):
        return nn.functional.cross_entropy(network(x), y)

    def held_out(self, network):
        outputs = network(self._x[64:80])
        accuracy = 100.0 * (outputs.argmax(1) == self._y[64:80]).double().mean().item()
        return {"loss": nn.functional.cross_entropy(outputs, self._y[64:80]).item(), "accuracy": accuracy}

    def test(self, network):
        outputs = network(self._x[80:])
        accuracy = 100.0 * (outputs.argmax(1) == self._y[80:]).double().mean().item()
        return {"loss": nn.functional.cross_entropy(outputs, self._y[80:]).item(), "accuracy": accuracy}


class Units(Tiny):
    """The same convolutions with biases and without normalization."""

    name = "units"

    def network(self):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        )
        network.hidden = ("0.weight", "0.bias", "2.weight", "2.bias")
        return network


class Wider(Tiny):
    """A sweep of `lr` alone, about what is chosen in `Tiny`."""

    name = "wider"
    title = "Wider"
    budget = 7
    swept = 1
    after = Tiny
