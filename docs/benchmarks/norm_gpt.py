"""Every preset of norm geometry trains a small character GPT for 300 steps from its published rate:

    .venv/bin/python docs/benchmarks/norm_gpt.py TEXT [--steps 300] [--only Muon]

TEXT is the tiny Shakespeare corpus. 2 layers, 64 wide, 4 heads, 64 characters; the four matrices of each layer are declared, and
everything else is trained by AdamW at 3e-3; all rates fall to 0 linearly. Printed are the loss of the first steps and of the last 20,
in nats per character (random guessing: 4.17). It says that methods run, not which is better: nothing was swept.
"""

import argparse
from pathlib import Path

import torch
from retract import declare, optim, param_groups
from retract.manifolds import PSI, CenteredSphere, Euclidean, Rows, SpectralSphere, Sphere, Stiefel
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 4, 2, 64, 16
WHOLE = Rows.whole()
PRESETS = {
    "AdamW": (None, None, None),
    "Muon": (optim.Muon, Euclidean(2), Rows()),
    "MuonH": (optim.MuonH, PSI(), WHOLE),
    "AdamH": (optim.AdamH, PSI(), WHOLE),
    "HypersphericalDescent": (optim.HypersphericalDescent, PSI(), WHOLE),
    "ObliqueSGD": (optim.ObliqueSGD, Sphere(), Rows()),
    "ObliqueAdam": (optim.ObliqueAdam, Sphere(), Rows()),
    "ManifoldMuon": (optim.ManifoldMuon, Stiefel(), None),
    "SPEL": (optim.SPEL, Stiefel(), None),
    "SSO": (optim.SSO, SpectralSphere(), Rows()),
    "Scion": (optim.Scion, Euclidean(2), Rows()),
    "Nero": (optim.Nero, CenteredSphere(), Rows()),
    "Rotational": (optim.Rotational, PSI(), Rows()),
    "PSIMuon": (optim.PSIMuon, PSI(), Rows()),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    def __init__(self, characters):
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, characters, bias=False)

    def forward(self, text):
        x = self.tokens(text) + self.places(torch.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def optimizers(name, model):
    """The preset for the matrices of the layers, and AdamW for the rest."""
    make, manifold, rows = PRESETS[name]
    if make is None:
        return [torch.optim.AdamW(model.parameters(), lr=3e-3)]
    for weight, p in model.blocks.named_parameters():
        if p.ndim == 2:
            wide = p.shape[1] > p.shape[0]
            declare(model.blocks, weight, manifold, rows or (Rows.whole(columns=0) if wide else Rows()))
    declared, rest = [], []
    for group in param_groups(model):
        (declared if "manifold" in group else rest).append(group)
    return [make(declared), torch.optim.AdamW([p for group in rest for p in group["params"]], lr=3e-3)]


def train(name, text, steps):
    """The loss of every step."""
    torch.manual_seed(0)
    model = GPT(int(text.max()) + 1)
    made = optimizers(name, model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda t: 1.0 - t / steps) for each in made]
    draws, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=draws)
        batch = text[starts + torch.arange(CONTEXT + 1)]
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for each in (*made, *schedules):
            each.step()
        losses.append(float(loss.detach()))
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", choices=[*PRESETS])
    options = parser.parse_args()
    found = options.text.read_text()
    index = {character: i for i, character in enumerate(sorted(set(found)))}
    text = torch.tensor([index[character] for character in found])
    print("| optimizer of the matrices | loss of the first step | mean of the last 20 |\n| --- | --- | --- |")
    for name in [options.only] if options.only else PRESETS:
        losses = train(name, text, options.steps)
        last = sum(losses[-20:]) / 20
        print(f"| {name} | {losses[0]:.2f} | {last:.3f} |", flush=True)
        if not last < losses[0] - 0.5:
            raise SystemExit(f"{name} has not trained: {losses[::20]}")


if __name__ == "__main__":
    main()
