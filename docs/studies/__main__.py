"""``python docs/studies run|again|time STUDY`` and ``python docs/studies report``: the studies, in a checkout, where they are the
package ``studies``."""

import argparse
import functools
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line, on one core: the bits of a run depend on the number of threads."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    sys.path[0] = str(
        Path(__file__).resolve().parents[1]
    )  # Python has put the package there, in place of the folder it is in
    import torch

    from studies import cost, mechanism, reports, runs
    from studies.batchnorm import BatchNorm
    from studies.methods import load, names

    studies = {study.name: study for study in reports.STUDIES}
    parser = argparse.ArgumentParser(prog="python docs/studies", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the next runs; a second worker may do so at the same time")
    repeat = commands.add_parser(
        "again", help="repeat a stored run and compare it bit by bit; exit code 1 if it differs"
    )
    report = commands.add_parser("report", help="write the tables and the pictures of all pages")
    times = commands.add_parser("time", help="milliseconds per step of every method, in turn")
    times.add_argument("--rounds", type=int, default=15, help="of ten steps of each method")
    for command in (run, repeat, times, report):
        command.add_argument("--results", type=Path, default=runs.RESULTS, help="folder of the stored runs")
    for command, others in ((run, [mechanism.FOLDER]), (repeat, [mechanism.FOLDER]), (times, [])):
        command.add_argument("study", choices=[*studies, *others])
        command.add_argument(
            "--data", type=Path, default=os.environ.get("STUDY_DATA"), help="folder of the data; or STUDY_DATA"
        )
    run.add_argument(
        "--method",
        metavar="METHOD",
        choices=[*names(), mechanism.DRIVEN],
        action="append",
        help="only this one, or one that is not in the study; may be given several times",
    )
    run.add_argument("--minutes", type=float, default=float("inf"), help="no run begins after this time")
    repeat.add_argument("method", metavar="METHOD", choices=[*names(), mechanism.DRIVEN])
    repeat.add_argument("index", type=int, help="of the run in the file of the method, from 0")
    arguments = parser.parse_args()
    if arguments.command == "report":
        return reports.write(arguments.results)
    if arguments.data is None:
        parser.error("--data DIR or STUDY_DATA=DIR is needed: the folder of the data")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tell = functools.partial(print, flush=True)
    turns, folder = arguments.study == mechanism.FOLDER, arguments.results / arguments.study
    study = (BatchNorm if turns else studies[arguments.study])(arguments.data)
    if arguments.command == "time":
        return print(cost.generated(study, folder, arguments.rounds))
    if arguments.command == "run" and turns:
        methods = arguments.method or [*mechanism.METHODS, mechanism.DRIVEN]
        return mechanism.work(study, methods, arguments.minutes, arguments.results, tell)
    if arguments.command == "run":
        methods = arguments.method or runs.methods_in(study, folder)
        return runs.work(study, methods, arguments.minutes, folder, tell)
    name, index = arguments.method, arguments.index
    made = functools.partial(mechanism.made, study, name) if turns else functools.partial(runs.made, study, load(name))
    for key, (stored, new) in (differences := runs.again(name, index, folder, made)).items():
        print(f"{key}: {stored} is stored, {new} came out")
    sys.exit("differs" if differences else print("the same, bit by bit"))


if __name__ == "__main__":
    main()
