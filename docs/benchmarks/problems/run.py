"""Solvers of this library, of pymanopt and of geoopt on all problems, interleaved, float64, one thread.

    python docs/benchmarks/problems/run.py                              # writes results/ and the tables of ../problems.md
    python docs/benchmarks/problems/run.py --only rayleigh --only pca   # measures these again, and keeps the others' results
    python docs/benchmarks/problems/run.py --sizes both --rounds 5

All solvers get the same f, start and tolerance, ‖grad f‖ ≤ 1e-9 of its start, and are timed until f first returned a value with a
relative gap of 1e-10. A solver that does not get there is run once.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy and torch are imported

import torch

sys.path.append(str(Path(__file__).parents[2]))  # where benchmarks.problems is
from benchmarks.problems import LARGER, PROBLEMS
from benchmarks.problems.measure import measure
from benchmarks.problems.report import RESULTS, write


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(PROBLEMS), help="a problem; may be given several times")
    parser.add_argument("--sizes", choices=["default", "larger", "both"], default="default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="the most seconds of a run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in ("default", "larger") if arguments.sizes == "both" else (arguments.sizes,):
        path = RESULTS / f"{size}.json"
        problems = json.loads(path.read_text())["problems"] if arguments.only and path.exists() else {}
        for name in arguments.only or PROBLEMS:
            make = PROBLEMS[name]
            problem = make(**LARGER[make]) if size == "larger" else make()
            print(f"{size}: {name}", flush=True)
            solvers = measure(problem, arguments.rounds, arguments.seconds)
            for solver, result in solvers.items():
                median = statistics.median(result["seconds"]) if result.get("seconds") else math.nan
                print(f"  {solver:20s} {median:8.3f} s  {result}", flush=True)
            problems[name] = {
                "name": problem.name,
                "manifold": repr(problem.manifold),
                "shape": list(problem.x0.shape),
                "optimum": problem.optimum,
                "known": problem.known,
                "solvers": solvers,
            }
            content = {
                "machine": f"{platform.machine()}, one thread, torch {torch.__version__}, Python {platform.python_version()}",
                "date": str(date.today()),
                "rounds": arguments.rounds,
                "problems": {key: problems[key] for key in PROBLEMS if key in problems},
            }
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=1) + "\n")
    write()


if __name__ == "__main__":
    main()
