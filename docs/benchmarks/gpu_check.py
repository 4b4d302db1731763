"""What a GPU has to show, in one call of under ten minutes: that the Triton kernels are right on it, that a training step
goes into a CUDA graph, and the times that are to hold.

    python docs/benchmarks/gpu_check.py                   # prints a Markdown page; exit status 1 if a row fails
    python docs/benchmarks/gpu_check.py --write page.md   # writes it, too
    python docs/benchmarks/gpu_check.py --only times      # or tests, graphs, hyperbolic; every-rule, which takes minutes by itself

`retract` has to be importable, with pytest for the tests (pytest-xdist, if it is there, compiles kernels side by side).
Times are interleaved in one run, medians. *alone* starts with an idle device, so that it has all of Python's time in
it; *queued* finds the device busy, as after a backward pass, and is the device's own time. The larger ratio counts.
Without a GPU nothing is measured and the exit status is 0.
"""

import argparse
import copy
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from retract import manifolds
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim import PSISGD, SGDG, RiemannianSGD
from torch import nn
from weights import LISTS, tensors

ROOT = Path(__file__).parents[2]
ROUNDS = {"ResNet-56": 40, "ResNet-50": 30, "ViT-B": 20, "transformer-1B": 10}
MOMENTUM = {"lr": 1e-5, "momentum": 0.9}
PAUSE = 2 * 10**7
"""Cycles that a device is kept busy while work is queued: about ten milliseconds."""


def queued(step):
    """Milliseconds of `step` on a device that has something to do until all of it is queued."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(PAUSE)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def alone(step):
    """Milliseconds of `step` from an idle device to an idle device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def medians(steps, rounds):
    """{name: (alone, queued)} in milliseconds; every step has its turn in every round."""
    for step in steps.values():
        for _ in range(3):
            step()
    times = {name: ([], []) for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name][0].append(alone(step))
            times[name][1].append(queued(step))
    return {name: tuple(statistics.median(each) for each in both) for name, both in times.items()}


def contenders(name):
    """{name: step} on one set of weights and gradients, and the copy of as many bytes as an update with a buffer moves."""
    weights, grads = tensors(LISTS[name], "cuda")

    def params(manifold=None):
        result = [nn.Parameter(w) for w in weights]
        for p, grad in zip(result, grads, strict=True):
            p.grad = grad
        return result if manifold is None else [{"params": result, "manifold": manifold}]

    def sgdg(orthogonality):
        return SGDG(params(Grassmann(1)), lr=1e-5, orthogonality=orthogonality, fused=True).step

    size = sum(w.numel() for w in weights)
    source, target = torch.ones(size * 5 // 2, device="cuda"), torch.empty(size * 5 // 2, device="cuda")
    steps = {
        "torch fused": torch.optim.SGD(params(), fused=True, **MOMENTUM).step,
        "torch foreach": torch.optim.SGD(params(), foreach=True, **MOMENTUM).step,
        "PSISGD fused": PSISGD(params(PSI()), fused=True, **MOMENTUM).step,
        "PSISGD default": PSISGD(params(PSI()), **MOMENTUM).step,
        "SGDG": sgdg(0.0),
        "copy": lambda: target.copy_(source),
    }
    if name in ("ResNet-56", "ResNet-50"):
        steps["sphere fused"] = RiemannianSGD(params(Sphere()), fused=True, **MOMENTUM).step
        steps["SGDG with penalty"] = sgdg(0.1)
        steps["matrix products"] = lambda: products(weights)
        if importlib.util.find_spec("geoopt"):
            import geoopt

            flat = [geoopt.ManifoldParameter(w.flatten(1), manifold=geoopt.Sphere()) for w in weights]
            for p, grad in zip(flat, grads, strict=True):
                p.grad = grad.flatten(1)
            steps["geoopt"] = geoopt.optim.RiemannianSGD(flat, **MOMENTUM).step
    return steps, 5 * 4 * size


def hyperbolic():
    """Rows, as of `times`: a fused step on 100,000 points of 64 coordinates against geoopt's."""
    if not importlib.util.find_spec("geoopt"):
        return
    import geoopt

    for name in ("Lorentz", "PoincareBall"):
        manifold = getattr(manifolds, name)()
        x = manifold.random_point(100_000, 64, generator=torch.Generator().manual_seed(0)).cuda()
        ours, theirs = nn.Parameter(x.clone()), geoopt.ManifoldParameter(x.clone(), manifold=getattr(geoopt, name)())
        ours.grad = theirs.grad = 1e-2 * torch.randn_like(x)
        steps = {
            "ours": RiemannianSGD([{"params": [ours], "manifold": manifold}], fused=True, **MOMENTUM).step,
            "theirs": geoopt.optim.RiemannianSGD([theirs], **MOMENTUM).step,
        }
        found = medians(steps, 20)
        ratio = max(a / b for a, b in zip(found["ours"], found["theirs"], strict=True))
        pair = [f"{each[0]:.3f}, {each[1]:.3f}" for each in found.values()]
        what = "hyperbolic rows fused / geoopt RiemannianSGD"
        yield what, name, *pair, f"{ratio:.2f}", "≤ 0.17", ratio <= 0.17


def products(weights):
    """Those of the orthogonality penalty, in the cheaper order."""
    for w in weights:
        y = w.flatten(1)
        _ = y @ (y.mT @ y) if y.shape[1] < y.shape[0] else (y @ y.mT) @ y


def times():
    """Rows (what, where, ours, theirs, ratio, bound, holds)."""
    for name in LISTS:
        steps, moved = contenders(name)
        found = medians(steps, ROUNDS[name])

        def row(what, ours, theirs, bound, name=name, found=found):
            a, b = found[ours], found[theirs]
            ratio = max(a[0] / b[0], a[1] / b[1])
            pair = [f"{each[0]:.3f}, {each[1]:.3f}" for each in (a, b)]
            return what, name, *pair, f"{ratio:.2f}", f"≤ {bound}", ratio <= bound

        if name != "ResNet-56":
            yield row("PSI-SGDM fused / torch SGD fused", "PSISGD fused", "torch fused", 1.05)
            yield row("SGDG, orthogonality 0 / torch SGD fused", "SGDG", "torch fused", 1.10)
        else:
            yield row("PSI-SGDM default path / torch SGD foreach", "PSISGD default", "torch foreach", 1.10)
        share = found["copy"][1] / found["PSISGD fused"][1]
        speeds = [f"{moved / found[each][1] / 1e6:.0f} GB/s" for each in ("PSISGD fused", "copy")]
        bound = 0.85 if name == "transformer-1B" else 0.0
        yield "bandwidth of PSI-SGDM / of a copy", name, *speeds, f"{share:.2f}", f"≥ {bound}", share >= bound
        if "geoopt" in found:
            yield row("sphere rows fused / geoopt RiemannianSGD", "sphere fused", "geoopt", 0.2)
        if name == "ResNet-50":
            penalty, alone_ = found["SGDG with penalty"][1] - found["SGDG"][1], found["matrix products"][1]
            ratio = penalty / alone_
            yield (
                "penalty / its matrix products",
                name,
                f"{penalty:.3f}",
                f"{alone_:.3f}",
                f"{ratio:.2f}",
                "≤ 2",
                ratio <= 2,
            )
        del steps
        torch.cuda.empty_cache()


def network():
    """A small network whose first weight is scale-invariant."""
    torch.manual_seed(0)
    parts = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    )
    return parts.cuda()


def train(model, optimizer, steps, captured):
    """Losses of `steps` training steps; those after the third replay a CUDA graph if `captured`."""
    generator = torch.Generator("cuda").manual_seed(1)
    x, y = torch.empty(32, 3, 8, 8, device="cuda"), torch.empty(32, dtype=torch.long, device="cuda")
    loss, graph, losses = torch.zeros((), device="cuda"), torch.cuda.CUDAGraph(), []

    def step():
        optimizer.zero_grad(set_to_none=True)
        its = nn.functional.cross_entropy(model(x), y)
        its.backward()
        optimizer.step()
        loss.copy_(its.detach())

    side = torch.cuda.Stream()
    for t in range(steps):
        x.copy_(torch.randn(x.shape, generator=generator, device="cuda"))
        y.copy_(torch.randint(10, y.shape, generator=generator, device="cuda"))
        if not captured or t < 3:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if t == 3:
                with torch.cuda.graph(graph):
                    step()
            graph.replay()
        losses.append(loss.item())
    return losses


def graphs():
    """Rows: whole training steps, replayed against the same steps without a graph."""
    makes = {
        "PSI-SGDM, fused, constant lr": lambda p, q: PSISGD(
            [{"params": p, "manifold": PSI()}, {"params": q}], lr=0.05, momentum=0.9, fused=True
        ),
        "PSI-SGDM, capturable": lambda p, q: PSISGD(
            [{"params": p, "manifold": PSI()}, {"params": q}], lr=0.05, momentum=0.9, capturable=True
        ),
    }
    for name, make in makes.items():
        model = network()
        runs = []
        for captured in (False, True):
            twin = copy.deepcopy(model)
            first, *others = twin.parameters()
            try:
                runs.append(train(twin, make([first], others), 20, captured))
            except RuntimeError as error:
                yield "CUDA graph of a training step", name, "", "", str(error).splitlines()[0], "captures", False
                break
        else:
            gap = max(abs(a - b) for a, b in zip(*runs, strict=True))
            yield "CUDA graph of a training step", name, "", "", f"losses differ by {gap:.1e}", "≤ 1e-3", gap <= 1e-3


def tests(*selection):
    """One row: the tests of the Triton kernels on the device."""
    workers = ["-n", "auto"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=", *workers]
    files = [str(ROOT / "tests/optim" / f"{name}.py") for name in ("triton_rows", "triton_rows_hyperbolic")]
    command += [*selection, "--device", "cuda", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    last = done.stdout.strip().splitlines()[-1:] or ["no output"]
    return [("tests of the Triton kernels", "on the device", "", "", last[0].strip("= "), "pass", done.returncode == 0)]


def every_rule():
    """The same with every rule, in minutes: each kernel takes seconds to compile."""
    return tests("-m", "long")


CHECKS = {"tests": tests, "graphs": graphs, "times": times, "hyperbolic": hyperbolic}
MORE = {"every-rule": every_rule}


def main():
    """Print the page; 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*CHECKS, *MORE], help="one part; every-rule is in no other call")
    parser.add_argument("--write", type=Path, help="where to write the page, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here: nothing checked, nothing timed.")
        return 0
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32; milliseconds alone, queued.",
        "",
        "| what | where | ours | theirs | ratio | must be | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    good = True
    chosen = {arguments.only: (CHECKS | MORE)[arguments.only]} if arguments.only else CHECKS
    for check in chosen.values():
        for *cells, holds in check():
            lines.append(f"| {' | '.join(cells)} | {'pass' if holds else '**fail**'} |")
            print(lines[-1], flush=True)
            good = good and holds
    page = "\n".join(lines)
    print(f"\n{page}")
    if arguments.write:
        arguments.write.write_text(page + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
