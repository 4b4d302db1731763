"""How the time of a step grows with the number of tensors and with their elements: fused PSI-SGDM and torch's SGD.

    python docs/benchmarks/scaling.py                  # prints, and writes scaling.md and scaling.png
    python docs/benchmarks/scaling.py --device cuda

Tensors of 64 elements, 10 to 10,000 of them; then 1e4 to 1e9 elements in matrices of rows of 1,024, as far as memory
goes: a step holds three arrays, and both optimizers of a pair share weights and gradients.
"""

import argparse
import os
from datetime import date
from pathlib import Path

import torch
from retract.manifolds import PSI
from retract.optim import PSISGD
from weights import interleaved, median, spread, tensors

HERE = Path(__file__).parent
MOMENTUM = {"lr": 1e-5, "momentum": 0.9}


def pair(shapes, rounds, device):
    """(ms, ±) of torch's default and fused SGD and of fused PSI-SGDM on weights of these shapes."""
    weights, grads = tensors(shapes, device)

    def params():
        result = [torch.nn.Parameter(w) for w in weights]
        for p, grad in zip(result, grads, strict=True):
            p.grad = grad
        return result

    steps = {
        "torch SGD, default": torch.optim.SGD(params(), **MOMENTUM).step,
        "torch SGD, fused": torch.optim.SGD(params(), **MOMENTUM, fused=True).step,
        "PSISGD, fused": PSISGD([{"params": params(), "manifold": PSI()}], **MOMENTUM, fused=True).step,
    }
    return {name: (median(v), spread(v)) for name, v in interleaved(steps, rounds, device).items()}


def memory(device):
    """Bytes that may be used."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])


def table(what, results):
    """Markdown, ratios to torch's fused SGD."""
    names = list(next(iter(results.values())))
    lines = [f"| {what} | " + " | ".join(f"{name}, ms" for name in names) + " | PSISGD / torch fused |"]
    lines.append("| --- " * (len(names) + 2) + "|")
    for size, times in results.items():
        cells = " | ".join(f"{ms:.3g} ± {around:.2g}" for ms, around in times.values())
        ratio = times["PSISGD, fused"][0] / times["torch SGD, fused"][0]
        lines.append(f"| {size:,} | {cells} | {ratio:.2f} |")
    return "\n".join(lines)


def plot(by_tensors, by_elements, path):
    """Both curves, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, results, label in zip(
        axes, (by_tensors, by_elements), ("tensors of 64 elements", "elements"), strict=True
    ):
        for name in next(iter(results.values())):
            axis.loglog(list(results), [times[name][0] for times in results.values()], marker="o", label=name)
        axis.set_xlabel(label)
        axis.set_ylabel("ms per step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    by_tensors = {n: pair([(1, 64)] * n, 200 if n < 1000 else 15, device) for n in (10, 100, 1000, 10_000)}
    print(table("tensors", by_tensors), flush=True)
    by_elements = {}
    for size in (10**4, 10**5, 10**6, 10**7, 10**8, 10**9):
        if 4 * size * 6 > memory(device):  # weights, gradients, three buffers, and room for one more
            print(f"{size:,} elements: not enough memory")
            continue
        rows = -(-size // 1024)
        matrices = max(1, rows // 4096)
        by_elements[size] = pair([(rows // matrices, 1024)] * matrices, 100 if size < 10**7 else 7, device)
    print(table("elements", by_elements))
    waiting = os.environ.get("OMP_WAIT_POLICY")
    policy = f" OMP_WAIT_POLICY is {waiting}." if waiting else ""
    suffix = "" if device == "cpu" else f"_{device}"
    plot(by_tensors, by_elements, HERE / f"scaling{suffix}.png")
    page = [
        "# How a step grows",
        "Momentum 0.9, float32, medians of interleaved steps ± half the distance between the quartiles. Written by "
        f"`.venv/bin/python docs/benchmarks/scaling.py` on {date.today()}.{policy}",
        f"![milliseconds per step](scaling{suffix}.png)",
        table("tensors of 64 elements", by_tensors),
        table("elements, in rows of 1,024", by_elements),
    ]
    (HERE / f"scaling{suffix}.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
