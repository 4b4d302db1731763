"""Runs that diverged, and methods and studies that a reader adds."""

import importlib
import math
import sys

import pytest
import torch
from made_runs import make
from retract.errors import RetractError
from studies import batchnorm, cost, mechanism, mechanism_page, methods, pages, protocol, reports, runs, summary
from studies.loop import train
from studies.methods import Method, load
from studies.protocol import Run
from tiny_study import FILE, Tiny, Wider

ENDS = {"test accuracy": 60.0, "test loss": 1.0}


def bowl(run):
    return 0.5 + 0.03 * sum(k * k for k in run.node)


def best_rates(stored, *later):
    """The two tables of rates."""
    text = pages.generated(Tiny, stored / "tiny", later)
    return text[text.index("| best lr") :].split("\n\n")[:2]


def lost(stored, name, seeds):
    """Let the final runs of a method with these seeds diverge."""
    found = runs.read(stored / "tiny", name)
    made = [{**r, "loss": None, "curve": []} if r["phase"] == "final" and r["seed"] in seeds else r for r in found]
    runs.store(stored / "tiny", load(name), made)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Writes the file of a method."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])

    def add(name, text):
        (folder / f"{name}.py").write_text(text)

    return add


def test_where_every_run_of_a_later_study_diverged_its_table_says_so(stored):
    make(Wider, "psi_sgdm", stored, lambda run: math.inf, None)
    best, costs = best_rates(stored, Wider)
    assert best.endswith("| diverged |")
    assert costs.endswith("| diverged |")


def test_a_rate_at_which_runs_diverge_is_not_nearly_as_good():
    losses = {((k,), 0): math.inf if abs(k) == 2 else 0.5 for k in range(-3, 4)}
    assert protocol.flat(losses, (0,), 0.1) == ((-1,), (1,))
    nowhere = dict.fromkeys(losses, math.inf)
    assert protocol.flat(nowhere, (0,), 0.1) == ((-3,), (3,))


def test_a_setting_at_which_a_seed_diverged_is_not_chosen():
    losses = {((0,), 0): 0.5, ((0,), 1): math.inf, ((1,), 0): 0.6}
    assert protocol.chosen(losses) == (1,)
    assert protocol.chosen(dict.fromkeys(losses, math.inf)) == (0,)


def test_a_sweep_tells_losses_along_its_rate():
    losses = {((k, rest), 0): (k + 1.0) ** 2 + 10.0 * rest for k in (1, 0, -1, -2) for rest in (0, 1)}
    more = {((k, 0), 1): losses[(k, 0), 0] + 0.5 for k in (-1, -2)}
    found = runs.Sweep(load("psi_sgdm"), {**losses, **more})
    assert [*found.at_multiples.items()] == [(0.5, 1.0), (1.0, 0.0), (2.0, 1.0), (4.0, 4.0)]


def test_losses_at_multiples_of_a_rate_are_those_of_the_same_seeds(stored):
    """Where the loss of other seeds is larger by 1."""
    found = runs.read(stored / "tiny", "psi_sgdm")
    others = [{**r, "loss": r["loss"] + 1.0} if r["seed"] in protocol.FINAL_SEEDS[2:] else r for r in found]
    before = pages.rows(Tiny, stored / "tiny")["psi_sgdm"].at_multiples
    runs.store(stored / "tiny", load("psi_sgdm"), others)
    assert [*before] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert pages.rows(Tiny, stored / "tiny")["psi_sgdm"].at_multiples == before


def test_a_sweep_goes_on_until_no_setting_has_more_seeds_than_the_best():
    """Where the second seed diverges wherever it is tried, up to a better setting that has the first alone."""
    losses = {((k,), 0): 0.5 + 0.01 * k * k for k in range(-2, 4)} | {((k,), 1): math.inf for k in (0, 1)}
    assert protocol.chosen(losses) == (-1,)
    assert protocol.next_of_sweep(1, losses, 8) is not None


def test_a_baseline_that_diverged_has_no_target_and_is_blamed_itself(stored):
    lost(stored, "sgd_decay", {101})
    assert "| steps to 0.500 |" in pages.generated(Tiny, stored / "tiny")
    assert "| PSI-SGDM | lr 0.2, rest 0.2 | 63.02 ± 0.69 | – | SGD with decay diverged |" in summary.generated(
        Tiny, stored / "tiny"
    )
    lost(stored, "sgd_decay", {*protocol.FINAL_SEEDS})
    head = pages.generated(Tiny, stored / "tiny").splitlines()[0]
    assert head == (
        "| method | lr | rest | decay | test accuracy in % | difference to SGD with decay | test loss | difference |"
    )


def test_a_study_after_another_may_sweep_every_knob(stored):
    class Whole(Wider):
        name, title = "whole", "Whole"
        swept = None

    make(Whole, "psi_sgdm", stored, bowl, None)
    best, _ = best_rates(stored, Whole)
    assert best.splitlines()[0].startswith("| best lr, rest (held-out loss, runs); every lr")
    assert "| PSI-SGDM | 0.2, 0.2 (0.401, 2) | 0.2, 0.2 (0.500, 3) |" in best


def test_a_method_of_one_knob_has_no_second_to_sweep(stored, added):
    class Two(Wider):
        name, title = "two", "Two"
        swept = 2

    class Other(Tiny):
        centre_of_rest = 0.5

    added("alone", FILE.replace(', "rest": 0.1}', "}").replace("lr, rest)", "lr)"))
    make(Tiny, "alone", stored, bowl, lambda run: ENDS)
    found = make(Two, "alone", stored, bowl, None)
    assert {len(record["node"]) for record in found} == {1}
    best, _ = best_rates(stored, Two)
    assert "| best lr (held-out loss, runs); every lr" in best
    assert "| Mine | 0.1 (0.500, 2) | 0.1 (0.500, 2) |" in best
    assert runs.method_in(Other, "alone", stored / "tiny").knobs == {"lr": 0.1}


def test_knobs_have_one_order_whatever_that_of_the_file(added):
    added("backwards", FILE.replace('"lr": 0.1, "rest": 0.1', '"rest": 0.2, "lr": 0.1'))
    assert [*load("backwards").knobs.items()] == [("lr", 0.1), ("rest", 0.2)]
    added("without", FILE.replace('"lr": 0.1, ', ""))
    with pytest.raises(RetractError, match="without has no knob lr, the rate of the weights in which methods differ"):
        load("without")


def test_a_knob_that_is_removed_later_is_told(stored):
    found, method = runs.read(stored / "tiny", "sgd_decay"), load("sgd_decay")
    fewer = Method(method.name, method.title, {"lr": 0.1, "rest": 0.1}, method.optimizers)
    with pytest.raises(RetractError, match="stored as node .* which is not about the centres .* they have changed"):
        runs.next_run(Tiny, fewer, found)


def test_a_method_that_only_a_reader_runs_stands_in_all_tables_of_the_study(stored, added):
    added("mine", FILE)
    make(Tiny, "mine", stored, bowl, lambda run: ENDS)
    assert runs.methods_in(Tiny, stored / "tiny") == [*Tiny.methods, "mine"]
    text = pages.generated(Tiny, stored / "tiny")
    assert "\n| Mine | 0.1 | 0.1 | – | 60.00 ± 0.00 |" in text
    assert text.endswith("36 s.")
    assert f"{57 + 25} runs" in text
    assert "| Mine | lr 0.1, rest 0.1 | 60.00" in summary.generated(Tiny, stored / "tiny")
    runs.store(stored / "tiny", load("mine"), runs.read(stored / "tiny", "mine")[:3])
    assert "Not finished: Mine (3 runs)." in pages.generated(Tiny, stored / "tiny")


def test_a_run_that_is_not_stored_cannot_be_repeated(stored):
    for index in (-1, 25):
        with pytest.raises(RetractError, match=f"psi_sgdm has 25 runs in .* none of number {index}"):
            runs.again("psi_sgdm", index, stored / "tiny", lambda run: {})


def test_the_last_point_of_a_run_is_its_end(monkeypatch):
    monkeypatch.setattr(Tiny, "points", 5)
    with pytest.raises(RetractError, match="tiny has 16 steps and 5 points, and the last one has to be at the end"):
        train(Tiny(), load("sgd_plain"), {"lr": 0.1, "rest": 0.1}, 0, final=False)


def test_steps_are_not_timed_without_the_baseline(tmp_path):
    with pytest.raises(RetractError, match="sgd_decay, the baseline of wider, has no setting yet"):
        cost.generated(Wider(), tmp_path, 1)


def test_steps_of_a_method_that_only_a_reader_runs_are_timed(stored, added):
    added("mine", FILE)
    assert "| Mine |" not in cost.generated(Tiny(), stored / "tiny", 1)
    runs.store(stored / "tiny", load("mine"), [])
    assert "| Mine |" in cost.generated(Tiny(), stored / "tiny", 1)
    assert summary.generated(Tiny, stored / "tiny").endswith("Being measured: 1 more.")


@pytest.mark.parametrize("steps", [16, 24, 40])
def test_turns_are_of_sixteen_parts_however_many_steps_there_are(steps, monkeypatch):
    monkeypatch.setattr(Tiny, "steps", steps)
    monkeypatch.setattr(Tiny, "points", 8)
    setting = {"lr": 0.1, "rest": 0.1, "decay": 0.0}
    assert len(mechanism.made(Tiny(), "sgd_decay", Run("final", setting, 100, ()))["turns"]) == mechanism.PARTS


def test_nothing_is_driven_by_a_run_that_diverged():
    run = Run("final", {"lr": 1e30, "rest": 0.1, "decay": 0.0}, 100, ())
    found, sgd = (mechanism.made(Tiny(), name, run) for name in (mechanism.DRIVEN, "sgd_decay"))
    assert found["loss"] is None
    assert {**found, "seconds": 0} == {**sgd, "seconds": 0}


@pytest.fixture
def command(stored, monkeypatch, capsys):
    """Runs the command line on the stored runs of `Tiny`; what it prints, and its message or code at the exit."""
    module = importlib.import_module("studies.__main__")
    monkeypatch.setattr(reports, "STUDIES", (Tiny,))
    monkeypatch.setattr(batchnorm, "BatchNorm", Tiny)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["studies", *arguments, "--data", "nowhere", "--results", str(stored)])
        code = None
        try:
            module.main()
        except SystemExit as ended:
            code = ended.code
        return capsys.readouterr(), code

    return run


def test_the_command_line_makes_runs_repeats_them_and_tells_what_there_is_not(command):
    assert command("run", "tiny")[0].out == "sgd_decay is done: 32 runs\npsi_sgdm is done: 25 runs\n"
    assert "invalid choice: 'psi_sgmd'" in command("run", "tiny", "--method", "psi_sgmd")[0].err
    printed, code = command("again", "tiny", "psi_sgdm", "0")
    assert "loss: 0.46" in printed.out  # by a formula, not by training
    assert code == "differs"
    assert "psi_adam: not yet swept" in command("run", "mechanism", "--method", "psi_adam", "--minutes", "0")[0].out


def test_the_command_line_repeats_runs_of_turns(command, monkeypatch):
    monkeypatch.setattr(mechanism, "SEEDS", (100,))
    made = command("run", "mechanism", "--method", "sgd_decay")[0].out
    assert made.endswith("sgd_decay is done: 1 runs\n")
    printed, code = command("again", "mechanism", "sgd_decay", "0")
    assert printed.out == "the same, bit by bit\n"
    assert code is None


def test_turns_of_a_run_that_diverged_are_those_of_its_parts(tmp_path, monkeypatch):
    found = mechanism.made(Tiny(), "sgd_decay", Run("final", {"lr": 1e30, "rest": 1e30, "decay": 0.0}, 100, ()))
    assert found["loss"] is None
    assert len(found["turns"]) < mechanism.PARTS
    monkeypatch.setattr(mechanism, "chosen_in", lambda study, name, results: {})
    for name in (*mechanism.METHODS, mechanism.DRIVEN):
        common = {
            "phase": "final",
            "values": {},
            "seconds": 900.0,
            "loss": 1.0,
            "test accuracy": 60.0,
            "turns": [0.001] * mechanism.PARTS,
        }
        records = [{**common, "seed": seed} for seed in mechanism.SEEDS]
        if name == "psi_adam":
            records[2] |= {"loss": None, "turns": [0.002]}
        (tmp_path / mechanism.FOLDER).mkdir(exist_ok=True)
        runs.store(tmp_path / mechanism.FOLDER, Method(name, "", {}, list), records)
    text = mechanism_page.generated(tmp_path)
    assert "| Adam on PSI | – | – | – | – | – | 1 of 5 diverged | – |" in text
