"""The tables of ../problems.md and the picture of performance profiles, from results/*.json.

python docs/benchmarks/problems/report.py    # what run.py does in the end; a second run changes no byte
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.append(str(Path(__file__).parents[2]))  # where benchmarks.problems and pictures are
from benchmarks.problems import LARGER, PROBLEMS
from benchmarks.problems.trace import total
from pictures import BLUE, GREEN, GREY, RED, STYLE

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "problems.md"
PICTURE = RESULTS / "profiles.svg"
MOST = 100.0
"""The largest factor in the picture."""
UNITS = {"gradients": "", "values": "f", "products": "H"}
COLORS = {"retract": BLUE, "pymanopt": RED, "geoopt": GREEN}
LINES = {"L-BFGS": "-", "line search": "-", "CG": "--", "Adam": "--", "TR": ":", "SGD": ":", "SD": "-."}

Result = dict[str, Any]
Costs = dict[str, dict[str, float]]
"""{problem: {solver: cost}}, infinite where the gap was not reached."""


def evaluations(result: Result) -> float:
    """Evaluations to the gap in units of gradients."""
    return total(result["reached"]) if result.get("reached") else math.inf


def seconds(result: Result) -> float:
    """Median of the seconds to the gap."""
    return statistics.median(result["seconds"]) if result.get("seconds") else math.inf


def costs(content: Result, of: Callable[[Result], float]) -> Costs:
    """The cost of every solver on every problem."""
    return {
        name: {solver: of(result) for solver, result in problem["solvers"].items()}
        for name, problem in content["problems"].items()
    }


def profile(values: Costs, solver: str) -> tuple[list[float], list[float]]:
    """Dolan & Moré's performance profile of a solver: factors τ, and shares of problems that it solves within τ of the best."""
    ratios = []
    for row in values.values():
        best = min(row.values())
        ratios.append(row[solver] / best if math.isfinite(best) else math.inf)
    solved = sorted(ratio for ratio in ratios if math.isfinite(ratio))
    return solved, [(i + 1) / len(ratios) for i in range(len(solved))]


def absent(result: Result) -> str:
    """What stands for a solver that returned no point."""
    return "failed" if "error" in result else ""


def cell(result: Result) -> str:
    """Gradients, values and products to the gap, and the seconds."""
    if "reached" not in result:
        return absent(result)
    if not result["reached"]:
        return "–"
    counts = result["reached"]
    parts = [f"{counts[kind]}{unit}" for kind, unit in UNITS.items() if counts[kind] or kind == "gradients"]
    return f"{' + '.join(parts)} · {seconds(result):.2g}"


def end(result: Result) -> str:
    """Gap and share of the gradient where the solver ended."""
    if "gap" not in result:
        return absent(result)
    return f"{result['gap']:.0e} · {result['gradient']:.0e}"


def table(content: Result, show: Callable[[Result], str]) -> str:
    """Markdown: problems by solvers."""
    names = list(next(iter(content["problems"].values()))["solvers"])
    lines = [f"| problem | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for problem in content["problems"].values():
        lines.append(f"| {problem['name']} | {' | '.join(show(problem['solvers'][name]) for name in names)} |")
    return "\n".join(lines)


def comparison(content: Result) -> str:
    """Sentences: the best method of this library against the best of pymanopt."""

    def best(row: dict[str, float], library: str) -> float:
        return min(cost for solver, cost in row.items() if solver.startswith(library))

    parts = []
    for what, of in (("evaluations", evaluations), ("seconds", seconds)):
        pairs = [(best(row, "retract"), best(row, "pymanopt")) for row in costs(content, of).values()]
        fewer = sum(ours <= theirs < math.inf or ours < theirs for ours, theirs in pairs)
        ratios = [ours / theirs for ours, theirs in pairs if ours < math.inf and theirs < math.inf]
        middle = f", median ratio {statistics.median(ratios):.2f}" if ratios else ""
        parts.append(f"no more {what} on {fewer} of {len(pairs)}{middle}")
    return f"The best method of this library against the best of pymanopt: {'; '.join(parts)}."


def draw(contents: dict[str, Result], path: Path) -> None:
    """Profiles in evaluations and in seconds, one row per size."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(contents), 2, figsize=(9, 3.6 * len(contents)), squeeze=False, sharey=True)
        for row, (size, content) in zip(axes, contents.items(), strict=True):
            for axis, (what, of) in zip(row, (("evaluations", evaluations), ("seconds", seconds)), strict=True):
                values = costs(content, of)
                for solver in next(iter(values.values())):
                    library, method = solver.split(maxsplit=1)
                    factors, shares = profile(values, solver)
                    shown = sum(factor <= MOST for factor in factors)
                    steps = [1.0, *factors[:shown], MOST], [0.0, *shares[:shown], shares[shown - 1] if shown else 0.0]
                    axis.step(*steps, where="post", color=COLORS[library], ls=LINES[method], lw=1.8, label=solver)
                axis.set(xscale="log", xlim=(1, MOST), ylim=(0, 1.03), xlabel=f"{what} / those of the best solver")
                axis.set_title(f"{size} sizes", fontsize=12, color=GREY)
            row[0].set_ylabel("share of problems solved")
        axes[0, 1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


def problems() -> str:
    """Markdown: every problem at its default size, and the arguments of its larger one."""
    lines = ["| function | problem | manifold | shape of x | optimum | how it is known | larger |", "| --- " * 7 + "|"]
    for name, make in PROBLEMS.items():
        problem = make()
        shape = " × ".join(map(str, problem.x0.shape))
        larger = ", ".join(f"{key}={value}" for key, value in LARGER[make].items())
        cells = (name, problem.name, f"`{problem.manifold!r}`", shape, f"{problem.optimum:.10g}", problem.known, larger)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def results(contents: dict[str, Result]) -> str:
    """Markdown: the picture and the tables of every size."""
    parts = [f"![performance profiles](problems/{PICTURE.relative_to(Path(__file__).parent).as_posix()})"]
    for size, content in contents.items():
        parts += [
            f"### {size.capitalize()} sizes",
            f"{content['machine']}, {content['date']}, {_rounds(content['rounds'])}. {comparison(content)}",
            "To a relative gap of 1e-10: gradients + values (f) + products with the Hessian (H) · seconds; – not reached, failed: an exception, empty: the "
            "library lacks the manifold or a map of it.",
            table(content, cell),
            "At the end: relative gap · length of the gradient as a share of that at the start.",
            table(content, end),
        ]
    return "\n\n".join(parts)


def _rounds(count: int) -> str:
    return f"medians of {count} interleaved rounds" if count > 1 else "one round"


def put(page: str, part: str, text: str) -> str:
    """The page with the part between its two marks replaced."""
    start, stop = f"<!-- {part}: written by report.py -->", f"<!-- end of {part} -->"
    return re.sub(f"{start}.*{stop}", lambda _: f"{start}\n\n{text}\n\n{stop}", page, flags=re.S)


def write() -> None:
    """Write the picture and the generated parts of the page."""
    paths = [RESULTS / f"{size}.json" for size in ("default", "larger")]
    contents = {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}
    page = put(PAGE.read_text(), "problems", problems())
    if contents:
        draw(contents, PICTURE)
        page = put(page, "results", results(contents))
    PAGE.write_text(page)


if __name__ == "__main__":
    write()
