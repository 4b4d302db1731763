"""The parts of the pages that are not written by hand: the table of optimizers, the bibliography, the badges.

    .venv/bin/python docs/generated.py

A test compares them with what stands there.
"""

import re
from importlib.metadata import metadata
from pathlib import Path

import torch
from anybadge import Badge
from pybtex.backends.markdown import Backend
from pybtex.database import parse_file
from pybtex.style.formatting.unsrt import Style
from retract.manifolds import PSI, Euclidean, Grassmann, Sphere
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD

HERE = Path(__file__).parent
OPTIMIZERS = [
    (RiemannianSGD, Euclidean(0)),
    (RiemannianAdam, Euclidean(0)),
    (RiemannianSGD, None),
    (RiemannianAdam, None),
    (PSISGD, PSI()),
    (SGDG, Grassmann(1)),
    (AdamG, Grassmann(1)),
]
"""With the manifold that each is for; None for any."""


def optimizers():
    """One row per optimizer: what it does at each seam, read off its defaults."""
    table = [
        "| optimizer | manifold | lr | ambient | tangent | rule | motion, transport |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for optimizer, manifold in OPTIMIZERS:
        on = manifold or Sphere()
        point = torch.nn.Parameter(torch.eye(2, 3))
        (group,) = optimizer([{"params": [point], "manifold": on}]).param_groups
        flat = isinstance(on, Euclidean)
        ambient = f"orthogonality {group['orthogonality']}" * bool(group["orthogonality"]) or "weight decay" * flat
        tangent = f"clip {group['max_point_norm']}" if group["max_point_norm"] else ""
        if "betas" in group:
            rule = f"Adam {group['betas']}, ε {group['eps_form']}"
        else:
            rule = f"{group['momentum_form'].replace('_', ' ')}, momentum {group['momentum']}"
        motion = "" if flat else f"{group['motion']}, {group['transport']}"
        cells = [
            f"`{optimizer.__name__}`",
            f"`{manifold}`".replace("event_ndim=", "") if manifold else "any",
            group["lr"],
            ambient,
            tangent,
            rule,
            motion,
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
