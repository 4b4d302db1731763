"""Time of `psi.find` with and without the search for pairs, in one run that alternates between the two."""

import argparse
import statistics
import time
from contextlib import ExitStack
from itertools import pairwise
from unittest import mock

import torch
from retract import psi
from torch import nn
from torch.nn import functional as F  # noqa: N812

WIDTH, HEADS, GROUPS, DEPTH, VOCABULARY = 512, 8, 2, 8, 1000


class Block(nn.Module):
    """Both halves of a residual block of convolutions with BatchNorm."""

    def __init__(self, inputs, width):
        super().__init__()
        self.stride = width // inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        """The sum of the branch and of `x`, with every second pixel and zeros for more channels."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))


def resnet20():
    """For CIFAR, batch 32."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(inputs, width) for inputs, width in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), torch.randn(
        32, 3, 32, 32
    )


class Gpt(nn.Module):
    """Causal attention with one projection for queries, keys and values, and a GELU between two linear layers."""

    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        """Of a residual stream, (batch, tokens, width)."""
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Llama(nn.Module):
    """Causal attention with rotary embeddings and four queries per key and value, and SwiGLU."""

    def __init__(self):
        super().__init__()
        size, hidden = WIDTH // HEADS, 3 * WIDTH
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, GROUPS * size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x):
        """Of a residual stream, (batch, tokens, width)."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
        x = x + self.o(
            F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True).transpose(1, 2).flatten(-2)
        )
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def turned(x):
    """Rotary embedding: entries i and i + d/2 of each head, turned by an angle that grows with the position."""
    a, b = x.chunk(2, -1)
    angles = torch.outer(torch.arange(x.shape[-2]), 1e4 ** -torch.linspace(0, 1, a.shape[-1]))
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Transformer(nn.Module):
    """Token ids to logits."""

    def __init__(self, block, norm, tied, depth=DEPTH):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks, self.norm = nn.Sequential(*(block() for _ in range(depth))), norm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        """Of (batch, tokens)."""
        return self.head(self.norm(self.blocks(self.embed(ids))))


def gpt():
    """25.7 million parameters, batch 4 × 64."""
    return Transformer(Gpt, nn.LayerNorm, tied=True), torch.randint(VOCABULARY, (4, 64))


def llama():
    """25.2 million parameters, batch 4 × 64."""
    return Transformer(Llama, nn.RMSNorm, tied=False), torch.randint(VOCABULARY, (4, 64))


def seconds(model, inputs, pairs):
    """Time of one call, on the clock and of the processor, and how many points its pairs have."""
    nothing = {"candidates": [], "pairs": ([], []), "between": {}, "Charges.add": None}
    with ExitStack() as stack:
        for name, result in nothing.items() if not pairs else ():
            stack.enter_context(mock.patch(f"retract.psi.invariance.{name}", return_value=result))
        clock, processor = time.perf_counter(), time.process_time()
        report = psi.find(model, inputs)
        times = time.perf_counter() - clock, time.process_time() - processor
    return *times, sum(pair.points for pair in report.pairs)


def main():
    """Print the medians, and the ratios of calls that follow each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet20", "gpt", "llama"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; seconds on the clock (of the processor)")
    print("network   parameters  points           without              with          ratio")
    for name in options.networks:
        torch.manual_seed(0)
        model, inputs = globals()[name]()
        rounds = [[seconds(model, inputs, pairs) for pairs in (False, True)] for _ in range(options.rounds)]
        median = [[statistics.median(r[i][kind] for r in rounds) for kind in (0, 1)] for i in (0, 1)]
        ratio = [statistics.median(r[1][kind] / r[0][kind] for r in rounds) for kind in (0, 1)]
        count, points = sum(p.numel() for p in model.parameters()), rounds[0][1][2]
        cells = "  ".join(f"{clock:8.2f} ({processor:5.2f})" for clock, processor in (*median, ratio))
        print(f"{name:8}  {count:10,}  {points:6}  {cells}", flush=True)


if __name__ == "__main__":
    main()
