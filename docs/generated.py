"""The parts of the pages that are not written by hand: the table of optimizers, the bibliography, the badges.

    .venv/bin/python docs/generated.py

A test compares them with what stands there.
"""

import re
import sys
from importlib.metadata import metadata
from pathlib import Path

import torch
from anybadge import Badge
from pybtex.backends.markdown import Backend
from pybtex.database import parse_file
from pybtex.style.formatting.unsrt import Style
from retract.manifolds import Euclidean, Rows, Sphere
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.optim.shapes import Spectral, described

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "benchmarks"))
from norm_invariance import OPTIMIZERS  # noqa: E402


def shape_of(group):
    """The shape of a group and its factors; empty if it has none."""
    if group["shape"] is None:
        return ""
    exact = [
        "exact spectral" if isinstance(one, Spectral) and one.exact else described([one]) for one in group["shape"]
    ]
    factors = [f"· {group['scale']:g}"] if group["scale"] != 1 else []
    return " ".join([", then ".join(exact), *factors, *filter(None, [group["adjust_lr_fn"]])])


def optimizers():
    """One row per optimizer: what it does at each seam, read off its defaults, and which rescalings of weights in front of a
    normalization keep its run."""
    table = [
        "| optimizer | manifold | lr | ambient | tangent | rule | shape | motion, transport | keeps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    general = [(make, None, Rows(), "") for make in (RiemannianSGD, RiemannianAdam)]
    for optimizer, manifold, rows, kept in [*OPTIMIZERS[:2], *general, *OPTIMIZERS[2:]]:
        on = manifold or Sphere()
        point = on.nearest(torch.eye(2, 3) - 0.1) if on.event_ndim < 2 else on.random_point(3, 2)
        rows = rows if on.event_ndim < 2 else Rows()
        built = optimizer([{"params": [torch.nn.Parameter(point)], "manifold": on, "rows": rows}])
        (group,) = built.param_groups
        flat = isinstance(on, Euclidean)
        decay = "decoupled decay" if group["decoupled_weight_decay"] else "weight decay"
        ambient = f"orthogonality {group['orthogonality']}" * bool(group["orthogonality"]) or decay * flat
        late = {"step": "of the step", "none": "none"}.get(group["tangent"], "")
        tangent = late or (f"clip {group['max_point_norm']}" if group["max_point_norm"] else "")
        if "betas" in group:
            per = " per coordinate" * bool(built.rule.arrays) + ", step ÷ its average" * built.rule.averages_steps
            rule = f"Adam {group['betas']}, ε {group['eps_form']}{per}"
        else:
            nesterov = ", Nesterov" * group["nesterov"]
            rule = f"{group['momentum_form'].replace('_', ' ')}, momentum {group['momentum']}{nesterov}"
        motion = "" if flat else f"{group['motion']}, {group['transport']}"
        where = f"`{manifold}`".replace("event_ndim=", "") + " whole" * (rows.blocks == 1) if manifold else "any"
        cells = [
            f"`{optimizer.__name__}`",
            where,
            f"{group['lr']:.3g}",
            ambient,
            tangent,
            rule,
            shape_of(group),
            motion,
            kept,
        ]
        table.append("| " + " | ".join(str(cell) or "–" for cell in cells) + " |")
    return "\n".join(table)


def bibliography():
    """The whole page; a heading per reference, so that pages can link to it."""
    parts = ["# Bibliography"]
    entries = parse_file(HERE / "references.bib")
    for entry in sorted(Style().format_bibliography(entries), key=lambda entry: entry.key):
        *names, year = entry.key.split("-")
        text = re.sub(r"\\([.()+-])", r"\1", entry.text.render(Backend()))  # escaped where Markdown needs no escape
        parts += [f"## {', '.join(map(str.capitalize, names))} {year}", text]
    parts.append("As BibTeX: [references.bib](references.bib).")
    return "\n\n".join(parts) + "\n"


def badges():
    """Path and picture of each badge of the README, from what is installed."""
    package = metadata("retract")
    (torch_from,) = (
        need.removeprefix("torch") for need in package.get_all("Requires-Dist") if need.startswith("torch>")
    )
    facts = {
        "version": package["Version"],
        "requires_python": package["Requires-Python"].replace(">=", "≥ "),
        "requires_torch": torch_from.replace(">=", "≥ "),
        "license": package["License-Expression"],
    }
    for name, value in facts.items():
        picture = Badge(name.replace("_", " "), value, default_color="#3b6ea5", num_padding_chars=1).badge_svg_text
        yield HERE / "pictures" / f"badge_{name}.svg", re.sub(r"anybadge_\d+", name, picture)


def pages():
    """Path and text of every file with a generated part."""
    path = HERE / "optimizers.md"
    begin, end = "<!-- generated: docs/generated.py -->\n", "\n<!-- end -->"
    before, rest = path.read_text().split(begin)
    after = rest.split(end)[1]
    return {
        path: before + begin + optimizers() + end + after,
        HERE / "bibliography.md": bibliography(),
        **dict(badges()),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
