"""Transformers: the next character of Shakespeare, by GPTs of width 64, 128 and 256."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

from .loop import Batches, RateSweep, Study

__all__ = ["GPT", "Transformers", "Transformers128", "Transformers256"]

_LAYERS = 2
_HEAD = 16
"""Numbers of a head."""
_BATCH = 16


class Transformers:
    """The file ``input.txt`` in `folder`: of its characters the first 90 % to train on, the next 5 % held out, the last 5 % to test."""

    name = "transformers"
    title = "width 64"
    methods: tuple[str, ...] = (
        "adamw_decay",
        "muon_decay",
        "muonh",
        "adamh",
        "psimuon_muonh",
        "pairs_adam",
        "psi_pairs",
    )
    pairs: tuple[tuple[str, str], ...] = (
        ("psimuon_muonh", "muonh"),
        ("muon_decay", "muonh"),
        ("muon_decay", "psimuon_muonh"),
        ("psi_pairs", "pairs_adam"),
    )
    budget = 15
    swept: int | None = None
    points = 16
    steps = 768
    warm_up = 0
    page = "transformers"
    scores: tuple[str, ...] = ("loss",)
    centre_of_rest: float | None = 0.016
    after: type[Study] | None = None
    width = 64
    context = 64

    def __init__(self, folder: Path) -> None:
        text = (folder / "input.txt").read_bytes().decode()
        index = {character: i for i, character in enumerate(sorted({*text}))}
        self.characters = len(index)
        codes = torch.tensor([index[character] for character in text])
        train, held_out = len(codes) * 90 // 100, len(codes) * 95 // 100
        self._train = codes[:train]
        self._held_out = codes[train:held_out].unfold(0, self.context + 1, 4 * self.context)
        self._test = codes[held_out:].unfold(0, self.context + 1, self.context)

    def network(self) -> GPT:
        """Two layers with heads of 16 numbers, initialized as torch does: at width 64 115,200 parameters."""
        return GPT(self.characters, self.width, self.width // _HEAD, _LAYERS, self.context)

    def example(self) -> Tensor:
        """The first four held-out windows."""
        return self._held_out[:4, :-1]

    def batches(self, generator: torch.Generator) -> Batches:
        """16 windows of the training text, each from anywhere, and as targets the same one character later."""
        windows = self._train.unfold(0, self.context + 1, 1)
        while True:
            chosen = windows[torch.randint(len(windows), (_BATCH,), generator=generator)]
            yield chosen[:, :-1], chosen[:, 1:]

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, in nats per character."""
        return cross_entropy(network(x).flatten(0, 1), y.flatten())

    def held_out(self, network: nn.Module) -> dict[str, float]:
        """The loss on every fourth window of the held-out text, where each begins without a past."""
        return _score(network, self._held_out)

    def test(self, network: nn.Module) -> dict[str, float]:
        """The same on all windows of the test text."""
        return _score(network, self._test)


class Transformers128(RateSweep, Transformers):
    """The same of twice the width: a sweep of `lr` about what was chosen at width 64."""

    name = "transformers-128"
    title = "width 128"
    after: type[Study] | None = Transformers
    width = 128


class Transformers256(Transformers128):
    """And of four times the width."""

    name = "transformers-256"
    title = "width 256"
    width = 256


class GPT(nn.Module):
    """Characters, (batch, length), to the logits of the next ones, (batch, length, characters)."""

    cos: Tensor
    sin: Tensor
    hidden: tuple[str, ...]
    """Names of the matrices of the blocks, in which the methods differ."""

    def __init__(self, characters: int, width: int, heads: int, layers: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, characters, bias=False)
        self.hidden = tuple(name for name, p in self.named_parameters() if name.startswith("blocks") and p.ndim > 1)
        half = width // heads // 2
        angles = torch.arange(context).outer(10_000.0 ** -(torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        x, length = self.embedding(text), text.shape[1]
        for block in self.blocks:
            x = block(x, (self.cos[:length], self.sin[:length]))
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """Causal attention of `heads` heads, with normalized queries and keys and rotary embedding, and SwiGLU of 3 × `width` units."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """(batch, length, width) to the same."""
        y = self.before(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        q, k = _turned(self.query_norm(q), *turns), _turned(self.key_norm(k), *turns)
        heads = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down(silu(self.gate(y)) * self.up(y))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: the numbers i and i + d/2 of a head at place t turned by t 10000^(−2i/d)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def _score(network: nn.Module, windows: Tensor) -> dict[str, float]:
    """Mean cross-entropy over all characters that are predicted."""
    total = 0.0
    for part in windows.split(_BATCH):
        logits = network(part[:, :-1]).flatten(0, 1).double()
        total += cross_entropy(logits, part[:, 1:].flatten(), reduction="sum").item()
    return {"loss": total / windows[:, 1:].numel()}
