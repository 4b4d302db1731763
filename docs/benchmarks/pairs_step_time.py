"""Time of a step on pairs of factors: a transformer of 12 layers, 768 wide, with hidden units on FixedRank(1), and values and
outputs, queries and keys on FixedRank(64), beside AdamW and SGD of torch on the same weights.

    python docs/benchmarks/pairs_step_time.py              # prints a table, 12 layers
    python docs/benchmarks/pairs_step_time.py --layers 2   # less memory
    python docs/benchmarks/pairs_step_time.py --profile "Adam, heads"

float32, random gradients, all optimizers interleaved in one run; median over the rounds, and its ratio to torch's fused optimizer
with the same rule.
"""

import argparse

import torch
from retract import declare, param_groups
from retract.manifolds import Factors, FixedRank, Part
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn
from weights import interleaved, median

WIDTH, HEAD = 768, 64
MOMENTUM = {"lr": 1e-4, "momentum": 0.9}


def network(layers, units=False, heads=False):
    """Layers of weights with random gradients; no step needs more of a network."""
    torch.manual_seed(0)
    model = nn.ModuleList(
        nn.ModuleDict(
            {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
            | {"up": nn.Linear(WIDTH, 4 * WIDTH), "down": nn.Linear(4 * WIDTH, WIDTH)}
        )
        for _ in range(layers)
    )

    def rows(name):
        return Part(f"{name}.weight"), Part(f"{name}.bias")

    for layer in model:
        if units:
            declare(layer, Factors((Part("down.weight", dim=1),), rows("up")), FixedRank(1))
        if heads:
            declare(layer, Factors((Part("out.weight", dim=1),), rows("value")), FixedRank(HEAD))
            declare(layer, Factors(rows("key"), rows("query")), FixedRank(HEAD))
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return model


def optimizers(layers):
    """Name → (optimizer, the name of the one to compare with)."""
    adamw, sgd = "AdamW of torch, fused", "SGD of torch with momentum, fused"
    found = {
        adamw: (torch.optim.AdamW(network(layers).parameters(), lr=1e-4, fused=True), adamw),
        sgd: (torch.optim.SGD(network(layers).parameters(), **MOMENTUM, fused=True), sgd),
    }
    for name, pairs in (
        ("units", {"units": True}),
        ("heads", {"heads": True}),
        ("both", {"units": True, "heads": True}),
    ):
        momentum = RiemannianSGD(param_groups(network(layers, **pairs)), **MOMENTUM, transport="none")
        found[f"momentum, {name}"] = momentum, sgd
        found[f"Adam, {name}"] = RiemannianAdam(param_groups(network(layers, **pairs)), lr=1e-4), adamw
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", help="profile one step of the optimizer of this name instead")
    options = parser.parse_args()
    found = optimizers(options.layers)
    if options.profile:
        optimizer, _ = found[options.profile]
        optimizer.step()
        with torch.profiler.profile() as profile:
            optimizer.step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
        raise SystemExit
    times = interleaved({name: optimizer.step for name, (optimizer, _) in found.items()}, options.rounds, "cpu")
    print(
        f"{options.layers} layers, {torch.get_num_threads()} threads\n\n| optimizer | ms | ratio |\n| --- | --- | --- |"
    )
    for name, (_, other) in found.items():
        print(f"| {name} | {median(times[name]):.0f} | {median(times[name]) / median(times[other]):.1f} |")
