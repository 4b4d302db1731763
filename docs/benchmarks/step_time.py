"""Time of one optimizer step on the weights of four networks: every path of ours, torch's and geoopt's, interleaved.

    python docs/benchmarks/step_time.py                 # measures, prints, and writes step_time.md and step_time.png
    python docs/benchmarks/step_time.py --quick         # a few rounds on ResNet-56 only, writes nothing
    python docs/benchmarks/step_time.py --device cuda   # the same on a GPU, with the 1-billion-parameter transformer

All ratios are within one run. The copy that a bandwidth is compared with moves as many bytes as the update has to:
weight, gradient and buffer in, weight and buffer out.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import torch
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim import PSISGD, SGDG, AdamG, RiemannianSGD
from weights import LISTS, interleaved, median, spread, tensors

sys.path.append(str(Path(__file__).parents[1]))  # where the package experiments is
from experiments import epoch_time

HERE = Path(__file__).parent
ROUNDS = {"ResNet-56": 60, "ResNet-50": 15, "ViT-B": 7, "transformer-1B": 10}
PATHS = {"reference": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
TORCH_PATHS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
MOMENTUM = {"lr": 1e-5, "momentum": 0.9}
OURS = {
    "PSISGD, momentum 0.9": lambda p, **path: PSISGD([{"params": p, "manifold": PSI()}], **MOMENTUM, **path),
    "PSISGD": lambda p, **path: PSISGD([{"params": p, "manifold": PSI()}], lr=1e-5, **path),
    "RiemannianSGD, sphere": lambda p, **path: RiemannianSGD([{"params": p, "manifold": Sphere()}], **MOMENTUM, **path),
    "SGDG, orthogonality 0": lambda p, **path: SGDG(
        [{"params": p, "manifold": Grassmann(1)}], lr=1e-5, orthogonality=0.0, **path
    ),
    "AdamG, orthogonality 0": lambda p, **path: AdamG(
        [{"params": p, "manifold": Grassmann(1)}], lr=1e-5, orthogonality=0.0, **path
    ),
}
PAIRS = [
    ("PSISGD, momentum 0.9, fused", "torch SGD, fused"),
    ("SGDG, orthogonality 0, fused", "torch SGD, fused"),
    ("RiemannianSGD, Euclidean, fused", "torch SGD, fused"),
    ("PSISGD, momentum 0.9, foreach", "torch SGD, default"),
]
# Arrays read and written, in units of the weights.
TRAFFIC = {"PSISGD": 3, "torch Adam": 7}


def contenders(weights, grads, name, device):
    """Every optimizer, all on the same weights and gradients: {name: step}."""

    def params(make=torch.nn.Parameter):
        result = [make(w) for w in weights]
        for p, grad in zip(result, grads, strict=True):
            p.grad = grad
        return result

    steps = {}
    for path, flags in TORCH_PATHS.items():
        steps[f"torch SGD, {path}"] = torch.optim.SGD(params(), **MOMENTUM, **flags).step
    for path, flags in TORCH_PATHS.items():
        steps[f"RiemannianSGD, Euclidean, {path}"] = RiemannianSGD(
            params(), **MOMENTUM, **(flags or {"foreach": device == "cuda"})
        ).step
    for path in ("default", "fused"):
        steps[f"torch Adam, {path}"] = torch.optim.Adam(params(), lr=1e-5, **TORCH_PATHS[path]).step
    for optimizer, make in OURS.items():
        for path, flags in PATHS.items():
            if path != "foreach" or name != "ViT-B" or device == "cuda":
                try:
                    steps[f"{optimizer}, {path}"] = make(params(), **flags).step
                except ValueError as error:
                    print(f"{optimizer}, {path}: left out, {error}")
    if name in ("ResNet-56", "ResNet-50"):
        steps["SGDG, orthogonality 0.1, fused"] = SGDG(
            [{"params": params(), "manifold": Grassmann(1)}], lr=1e-5, fused=True
        ).step
    if name != "transformer-1B":
        import geoopt

        def on_sphere(w):
            return geoopt.ManifoldParameter(w.flatten(1), manifold=geoopt.Sphere())

        for optimizer, make in (
            ("RiemannianSGD", lambda p: geoopt.optim.RiemannianSGD(p, **MOMENTUM)),
            ("RiemannianAdam", lambda p: geoopt.optim.RiemannianAdam(p, lr=1e-5)),
        ):
            flat = [on_sphere(w) for w in weights]
            for p, grad in zip(flat, grads, strict=True):
                p.grad = grad.flatten(1)
            steps[f"geoopt {optimizer}, sphere"] = make(flat).step
    return steps


def measure(name, device, rounds):
    """Rows (name, median ms, spread, ratio to torch's fused and default SGD, GB/s) of one list, and the copy's GB/s."""
    weights, grads = tensors(LISTS[name], device)
    size = sum(w.numel() for w in weights)
    source, target = (torch.empty(size * 5 // 2, device=device) for _ in range(2))
    source.zero_()
    steps = contenders(weights, grads, name, device)
    steps["copy of the same bytes"] = lambda: target.copy_(source)
    times = interleaved(steps, rounds, device)
    fused, default = median(times["torch SGD, fused"]), median(times["torch SGD, default"])
    rows = []
    for step, values in times.items():
        arrays = next((arrays for key, arrays in TRAFFIC.items() if step.rsplit(",", 1)[0] == key), 5)
        speed = arrays * 4 * size / median(values) / 1e6
        rows.append((step, median(values), spread(values), median(values) / fused, median(values) / default, speed))
    return rows


def head_to_head(name, rounds):
    """A sentence: ours against torch's, each pair alternating with nothing in between, so that both find their data and
    code in cache as far as they fit."""
    weights, grads = tensors(LISTS[name])
    parts = []
    for ours, theirs in PAIRS:
        every = contenders(weights, grads, name, "cpu")
        times = interleaved({key: every[key] for key in (ours, theirs)}, rounds)
        parts.append(f"{ours} / {theirs}: {median(times[ours]) / median(times[theirs]):.2f}")
    return f"{name}: {'; '.join(parts)}."


def table(rows):
    """Markdown."""
    copy = rows[-1][5]
    lines = [
        "| step | ms | ± | / torch SGD fused | / torch SGD default | GB/s | of the copy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {ms:.2f} | {around:.2f} | {fused:.2f} | {default:.2f} | {speed:.1f} | {100 * speed / copy:.0f} % |"
        for name, ms, around, fused, default, speed in rows
    ]
    return "\n".join(lines)


def first_call():
    """Seconds of the first fused step of a process, with an empty and with a full kernel cache."""
    code = (
        "import torch, time, retract.optim as o\n"
        "from retract.manifolds import PSI\n"
        "w = torch.nn.Parameter(torch.ones(3, 4)); w.grad = torch.ones(3, 4)\n"
        "t = time.perf_counter(); o.PSISGD([{'params': [w], 'manifold': PSI()}], fused=True).step()\n"
        "print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        return [
            float(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)
            for _ in range(2)
        ]


def share_of_training():
    """A sentence: the optimizer inside a training step of ResNet-56."""
    timings = epoch_time.measure(["sgd", "psi-sgdm"], 56, 6, torch.device("cpu"), lambda _: None)
    parts = [f"{t.method} {t.of_optimizer:.2f} ms of {1e3 * statistics.median(t.steps):.0f}" for t in timings]
    return f"The optimizer in a step of ResNet-56 at batch 128, all parameters, both at their defaults: {'; '.join(parts)}."


def plot(results, path):
    """Bars: milliseconds relative to torch's fused SGD, one list of weights above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(results), 1, figsize=(6.5, 6 * len(results)), squeeze=False)
    for axis, (name, rows) in zip(axes[:, 0], results.items(), strict=True):
        names = [row[0] for row in rows][::-1]
        colours = ["C0" if "fused" in n else "C1" if "foreach" in n else "C7" for n in names]
        bars = axis.barh(names, [row[3] for row in rows][::-1], color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(name)
        axis.set_xlabel("time of a step / torch SGD fused")
        axis.tick_params(axis="y", labelsize=9)
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    """Measure, print, write."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-training", action="store_true", help="leave out the share in a training step")
    arguments = parser.parse_args()
    lists = ["ResNet-56", "ResNet-50", "ViT-B"] + (["transformer-1B"] if arguments.device == "cuda" else [])
    if arguments.quick:
        lists = lists[:1]
    waiting = os.environ.get("OMP_WAIT_POLICY")
    policy = f" OMP_WAIT_POLICY is {waiting}." if waiting else ""
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    page = [
        "# Time of a step",
        f"{name}, torch {torch.__version__}, Python {platform.python_version()}, float32. Medians of interleaved steps, ± half "
        "the distance between the quartiles; ratios and the copy are of the same run. Written by "
        f"`.venv/bin/python docs/benchmarks/step_time.py` on {date.today()}.{policy}",
    ]
    results = {}
    for item in lists:
        start = time.perf_counter()
        results[item] = measure(item, arguments.device, 5 if arguments.quick else ROUNDS[item])
        page += [f"## {item}: {len(LISTS[item])} weights", table(results[item])]
        print(f"\n{page[-2]} ({time.perf_counter() - start:.0f} s)\n\n{page[-1]}", flush=True)
    if arguments.device == "cpu":
        page += ["## Head to head"]
        page += [head_to_head(item, 20 if arguments.quick else 10 * ROUNDS[item]) for item in lists[:2]]
        print("\n\n".join(["", *page[-len(lists[:2]) :]]), flush=True)
        compiled, cached = first_call()
        page += [
            "## The first step",
            f"Import of Numba and compilation of the row kernel for one dtype: {compiled:.1f} s, once per installation; "
            f"import and load from the disk: {cached:.1f} s per process.",
        ]
        print(f"\n{page[-1]}", flush=True)
        if not (arguments.quick or arguments.no_training):
            page += ["## Share of a training step", share_of_training()]
            print(f"\n{page[-1]}", flush=True)
    if not arguments.quick:
        suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
        plot(results, HERE / f"step_time{suffix}.png")
        page.insert(2, f"![times relative to torch's fused SGD](step_time{suffix}.png)")
        (HERE / f"step_time{suffix}.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
