"""``cifar``, ``imagenet``, ``epoch-time`` and ``table``: options, progress and tables of the experiments that train ResNets."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import typer
from retract.errors import RetractError
from rich.console import Console
from rich.table import Table

from . import cifar as tables_1_and_2
from . import epoch_time as section_6_2
from . import imagenet as torchvision_runs
from . import table as results
from .cli_shared import Device, check_files, chosen, new_table, progress, readable, show
from .methods import METHODS
from .plots import accuracies, training_curves
from .training import Epoch, Record

__all__ = ["cifar", "epoch_time", "imagenet", "table"]

Method = Enum("Method", {name.replace("-", "_"): name for name in METHODS}, type=str)  # type: ignore[misc]
"""Names of `METHODS`, for the command line."""


class Dataset(str, Enum):
    """Data sets of `cifar`."""

    cifar10 = "cifar10"
    cifar100 = "cifar100"


class Arch(str, Enum):
    """Networks of `imagenet`."""

    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"


_LR = typer.Option(help="of the weights in front of normalization layers, or of all; the published one if not given")
_METHODS = typer.Option(metavar="METHOD", help=f"may be given several times: {', '.join(METHODS)}")
_DECAY = typer.Option(min=0.0, help="L2; on the parameters that are on no manifold only, where there is one")
_ALPHA = typer.Option(min=0.0, help="α of SGDG and Adam-G; the paper's Table 1 has 0, its Table 2 has 0.1")
_BF16 = typer.Option(help="bfloat16 by autocast")
_LAYOUT = typer.Option(help="weights and images in channels_last")
_COMPILE = typer.Option(help="torch.compile the network")
_OUT = typer.Option(help="folder for the runs, one folder each")
_DEVICE = typer.Option(help="auto takes a GPU if there is one")


def cifar(
    data_dir: Annotated[Path, typer.Option(help="folder with cifar-10-batches-py or cifar-100-python")],
    dataset: Annotated[Dataset, typer.Option()] = Dataset.cifar10,
    depth: Annotated[int, typer.Option(help="6n + 2: 20, 32, 44, 56")] = 20,
    method: Annotated[list[Method], _METHODS] = [Method.psi_sgdm],  # type: ignore[attr-defined]  # noqa: B006
    lr: Annotated[float | None, _LR] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="choose the rate on 5,000 held-out training images: 0.3, 1, 3, 10 × the published"
        ),
    ] = False,
    sweep_images: Annotated[int, typer.Option(min=1, help="training images of the sweep")] = 10_000,
    sweep_epochs: Annotated[int, typer.Option(min=1)] = 5,
    weight_decay: Annotated[float, _DECAY] = 0.0,
    orthogonality: Annotated[float, _ALPHA] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="the rate falls × 0.2 after 30, 60 and 80 % of them")] = 200,
    batch: Annotated[int, typer.Option(min=2)] = 128,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each method, with seeds 0, 1, …")] = 1,
    images: Annotated[int, typer.Option(min=0, help="training images; 0 takes all")] = 0,
    bf16: Annotated[bool, _BF16] = False,
    channels_last: Annotated[bool, _LAYOUT] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help=_COMPILE.help)] = False,
    device: Annotated[Device, _DEVICE] = Device.auto,
    out: Annotated[Path, _OUT] = Path("out/cifar"),
    plot: Annotated[Path | None, typer.Option(help="PNG of the curves; cifar.png in --out if not given")] = None,
) -> None:
    """Tables 1 and 2, Figure 3: ResNets on CIFAR. Under any of the methods; the same command goes on where it was interrupted."""
    console = Console()
    with readable(f"Interrupted. Finished epochs are in {out}; the same command goes on from there."):
        if sweep and lr is not None:
            raise RetractError("--sweep chooses the rate: leave out --lr")
        place = chosen(device)
        picture = plot or out / "cifar.png"
        check_files(picture)
        split = tables_1_and_2.load(dataset.value, data_dir)
        records = []
        with progress(console) as bar:
            total = len(method) * (4 * sweep_epochs * sweep + seeds * epochs)
            task, done, earlier = bar.add_task("epochs", total=total), dict[str, int](), 0

            def report(config: tables_1_and_2.Config, number: int, epoch: Epoch) -> None:
                told = f"{config.name}: {number} of {config.epochs}, {_told(epoch)}"
                console.print(told, highlight=False, soft_wrap=True)
                advance(config, number, trained=1)

            def settle(record: Record) -> None:
                """A run that was finished before, or has diverged, reports less than its epochs."""
                config = tables_1_and_2.Config(**record.settings)
                advance(config, config.epochs, trained=0)

            def advance(config: tables_1_and_2.Config, number: int, trained: int) -> None:
                """To epoch `number` of a run, of which `trained` have taken time since the last call."""
                nonlocal earlier
                earlier += number - done.get(config.name, 0) - trained
                done[config.name] = number
                bar.update(task, completed=sum(done.values()), earlier=earlier)

            for one in method:
                base = tables_1_and_2.Config(
                    dataset=dataset.value,
                    depth=depth,
                    method=one.value,
                    lr=METHODS[one.value].lr if lr is None else lr,
                    weight_decay=weight_decay,
                    orthogonality=orthogonality,
                    batch=batch,
                    bf16=bf16,
                    channels_last=channels_last,
                    compile=compile_model,
                )
                if sweep:
                    trial = replace(base, epochs=sweep_epochs, images=sweep_images)
                    trials = tables_1_and_2.sweep(trial, split, place, out, report)
                    total += sweep_epochs * (len(trials) - 4)
                    bar.update(task, total=total)
                    for trial_run in trials:
                        settle(trial_run)
                    show([sweep_table(one.value, trials)], console, None)
                    base = replace(base, lr=tables_1_and_2.best(trials))
                for seed in range(seeds):
                    config = replace(base, epochs=epochs, images=images, seed=seed)
                    records.append(tables_1_and_2.train(config, split, place, out, report))
                    settle(records[-1])
        show([accuracy_table(results.rows(records, held_out=False))], console, None)
        training_curves([record for record in records if record.settings["seed"] == 0], picture)
        console.print(f"Curves: {picture}", soft_wrap=True)


def imagenet(
    data_dir: Annotated[Path, typer.Option(help="folder with train and val, a folder of images per class in each")],
    arch: Annotated[Arch, typer.Option()] = Arch.resnet18,
    method: Annotated[Method, typer.Option()] = Method.psi_sgdm,  # type: ignore[attr-defined]
    lr: Annotated[float | None, _LR] = None,
    weight_decay: Annotated[float, _DECAY] = 0.0,
    orthogonality: Annotated[float, _ALPHA] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="the rate falls × 0.2 after 30, 60 and 90 % of them")] = 100,
    batch: Annotated[int, typer.Option(min=2, help="over all processes")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes that read images, per GPU")] = 8,
    bf16: Annotated[bool, _BF16] = False,
    channels_last: Annotated[bool, _LAYOUT] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help=_COMPILE.help)] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="one epoch at 64 × 64 in batches of 8, to see that it runs")
    ] = False,
    device: Annotated[Device, _DEVICE] = Device.auto,
    out: Annotated[Path, _OUT] = Path("out/imagenet"),
) -> None:
    """Table 1, last block: torchvision's ResNets. On several GPUs: torchrun --nproc-per-node N docs/experiments imagenet …"""
    console = Console()
    with readable(f"Interrupted. Finished epochs are in {out}; the same command goes on from there."):
        config = torchvision_runs.Config(
            arch=arch.value, method=method.value, lr=METHODS[method.value].lr if lr is None else lr, weight_decay=weight_decay,
            orthogonality=orthogonality, epochs=epochs, batch=batch, seed=seed, bf16=bf16, channels_last=channels_last,
            compile=compile_model,
        )  # fmt: skip
        if smoke:
            config, workers = replace(config, epochs=1, batch=8, size=64), 0
        place = torchvision_runs.join_torchrun(chosen(device))
        first = not dist.is_initialized() or dist.get_rank() == 0
        try:
            with progress(console, disable=not first) as bar:
                task = bar.add_task("epochs", total=config.epochs)

                def report(number: int, epoch: Epoch) -> None:
                    console.print(f"{config.name}: {number} of {config.epochs}, {_told(epoch)}", soft_wrap=True)
                    earlier = bar.tasks[task].fields.get("earlier", number - 1)
                    bar.update(task, completed=number, earlier=earlier)

                record = torchvision_runs.train(config, data_dir, place, workers, out, report)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        if first:
            console.print(f"{config.name}: {record.accuracy:.2f} % on {data_dir / 'val'}", soft_wrap=True)
            training_curves([record], out / config.name / "curves.png")
            console.print(f"Curves: {out / config.name / 'curves.png'}", soft_wrap=True)


def epoch_time(
    depth: Annotated[int, typer.Option(help="6n + 2: 20, 32, 44, 56")] = 56,
    method: Annotated[list[Method] | None, _METHODS] = None,
    rounds: Annotated[int, typer.Option(min=2, help="training steps of each method")] = 20,
    batch: Annotated[int, typer.Option(min=2)] = 128,
    orthogonality: Annotated[float, _ALPHA] = 0.0,
    bf16: Annotated[bool, _BF16] = False,
    device: Annotated[Device, _DEVICE] = Device.auto,
    markdown: Annotated[Path | None, typer.Option(help="the table, as Markdown")] = None,
) -> None:
    """Seconds per epoch, §6.2. A CIFAR ResNet under all methods, interleaved, and the optimizer's share."""
    console = Console()
    names = [one.value for one in method] if method else list(METHODS)
    if "sgd" not in names:
        names.insert(0, "sgd")
    with readable(), progress(console) as bar:
        check_files(markdown)
        task = bar.add_task("", total=(rounds + 2) * len(names))
        place = chosen(device)
        timings = section_6_2.measure(
            names,
            depth,
            rounds,
            place,
            lambda name: bar.update(task, advance=1, description=name),
            batch,
            bf16,
            orthogonality,
        )
    reference = next(timing.epoch for timing in timings if timing.method == "sgd")
    summary = new_table(
        f"ResNet-{depth} on {place}: an epoch of 50,000 images in batches of {batch}",
        "± half the distance between the quartiles; published: ResNet-56 on a V100",
        ["method"],
        ["s per epoch", "±", "/ SGD", "optimizer, ms of a step", "published / SGD"],
    )
    for timing in timings:
        published = section_6_2.PUBLISHED.get(timing.method, math.nan) / section_6_2.PUBLISHED["sgd"]
        summary.add_row(
            METHODS[timing.method].title,
            f"{timing.epoch:.1f}",
            f"{100 * timing.spread:.0f} %",
            f"{timing.epoch / reference:.3f}",
            f"{timing.of_optimizer:.2f}",
            "–" if math.isnan(published) else f"{published:.2f}",
        )
    show([summary], console, markdown)


def table(
    folder: Annotated[list[Path], typer.Argument(help="folders with runs of cifar, at any depth")],
    plot: Annotated[Path, typer.Option(help="PNG of the table")] = Path("table.png"),
    markdown: Annotated[Path | None, typer.Option(help="the tables, as Markdown")] = None,
) -> None:
    """The paper's table from runs of cifar. Mean ± std over seeds, beside the published numbers; and the sweeps."""
    console = Console()
    with readable():
        check_files(plot, markdown)
        records = results.collect(folder)
        runs, trials = (results.rows(records, held_out) for held_out in (False, True))
        show([accuracy_table(lines) for lines in (runs, trials) if lines], console, markdown)
        if runs:
            accuracies(runs, plot)
            console.print(f"Picture: {plot}", soft_wrap=True)


def _told(epoch: Epoch) -> str:
    return (
        f"lr {epoch.lr:.3g}, loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.2f} %, test loss {epoch.test_loss:.4f}, "
        f"{epoch.seconds:.0f} s"
    )


def sweep_table(method: str, records: list[Record]) -> Table:
    """The rates of a sweep, the best one marked."""
    title = f"{METHODS[method].title}: chosen by accuracy on held-out training images"
    result = new_table(title, None, ["lr", "accuracy", "training loss"], [])
    for record in records:
        best = " ←" * (record.settings["lr"] == tables_1_and_2.best(records))
        result.add_row(f"{record.settings['lr']:g}", f"{record.accuracy:.2f} %{best}", f"{record.epochs[-1].loss:.4f}")
    return result


def accuracy_table(lines: list[results.Row]) -> Table:
    """Table 1 or 2: a row for each network and method."""
    of = "5,000 held-out training images" if lines[0].settings["held_out"] else "the test set"
    result = new_table(
        f"Accuracy in % on {of}, after the last epoch",
        "mean ± standard deviation (seeds); training loss; published: 200 epochs, rate not swept",
        ["network", "method"],
        ["lr", "accuracy", "loss", "published"],
    )
    for row in lines:
        s = row.settings
        images = f" of {s['images']:,} images" if s["images"] else ""
        result.add_row(
            f"{row.network}, {s['epochs']} epochs{images}",
            row.title,
            f"{s['lr']:g}",
            row.told,
            f"{sum(row.losses) / len(row.losses):.4f}" if row.losses else "–",
            "–" if s["held_out"] else row.published,
        )
    return result
