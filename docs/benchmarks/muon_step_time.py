"""Time of a step of Muon on the matrices of a transformer, 12 layers, 768 wide, against `torch.optim.Muon`; interleaved, medians.

    .venv/bin/python docs/benchmarks/muon_step_time.py [--layers 12] [--width 768] [--rounds 5]

torch iterates in bfloat16, one matrix after the other. Ours does in bfloat16 too, in float32, the default on a CPU, both batched over
matrices of equal shape, and in float32 one matrix after the other. The last rows are many small matrices: the heads of all layers, 64 × width.
"""

import argparse
from statistics import median
from time import perf_counter

import torch
from retract.optim import Muon, Spectral
from retract.optim.execution import reference
from torch import nn


def matrices(layers, width):
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [nn.Parameter(0.02 * torch.randn(shape)) for _ in range(layers) for shape in shapes]


def heads(layers, width):
    return [nn.Parameter(0.02 * torch.randn(64, width)) for _ in range(layers * (width // 64))]


def seconds(optimizer, stack):
    reference.STACK = stack
    start = perf_counter()
    optimizer.step()
    return perf_counter() - start


def compare(title, make, rounds):
    params = [make() for _ in range(5)]
    for ours in params:
        for p in ours:
            p.grad = torch.randn_like(p)
    whole = reference.STACK
    optimizers = {
        "torch.optim.Muon, bfloat16": (torch.optim.Muon(params[0], lr=0.02, weight_decay=0.0), whole),
        "Muon, bfloat16": (Muon(params[1], shape=Spectral(dtype=torch.bfloat16)), whole),
        "Muon": (Muon(params[2]), whole),
        "Muon, one by one": (Muon(params[3]), 1),
        "Muon, Polar Express": (Muon(params[4], shape=Spectral("polar_express")), whole),
    }
    times = {name: [] for name in optimizers}
    for _ in range(rounds + 1):  # the first is not counted
        for name, (optimizer, stack) in optimizers.items():
            times[name].append(seconds(optimizer, stack))
    reference.STACK = whole
    found = {name: median(values[1:]) for name, values in times.items()}
    base = found["torch.optim.Muon, bfloat16"]
    print(f"\n| {title} | ms | ratio |\n| --- | --- | --- |")
    for name, value in found.items():
        print(f"| {name} | {1e3 * value:.0f} | {value / base:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare("4 matrices per layer", lambda: matrices(options.layers, options.width), options.rounds)
    compare("heads", lambda: heads(options.layers, options.width), options.rounds)


if __name__ == "__main__":
    main()
