"""The runs of a study: bitwise the same again, resumed one by one, by several workers, with methods of ten lines; and their page."""

import contextlib
import dataclasses
import json
import re
from functools import partial

import pytest
import torch
from made_runs import make
from retract.errors import RetractError
from studies import methods, pages, runs, summary
from studies.batchnorm import BatchNorm
from studies.loop import train
from studies.lora_study import Lora
from studies.methods import load
from studies.relu_study import ReLUStudy
from studies.transformers import Transformers
from tiny_study import FILE, Tiny, Units, Wider, Words

CASES = [(Tiny, name) for name in BatchNorm.methods] + [(Words, name) for name in Transformers.methods]
CASES += [(Units, name) for name in ReLUStudy.methods]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The method of a reader, a file beside the others."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "mine.py").write_text(FILE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    return "mine"


class Stop(BaseException):
    """A worker that is killed."""


def lines(tmp_path, count, *names):
    """What a worker tells of `count` runs."""
    told = []

    def tell(line):
        told.append(line)
        if len(told) == count:
            raise Stop

    with contextlib.suppress(Stop):
        runs.work(Tiny(), names, float("inf"), tmp_path, tell)
    return told


def test_every_method_is_in_a_study():
    assert {name for _, name in CASES} | {*Lora.methods} == {*methods.names()}


@pytest.mark.parametrize(("study", "name"), CASES)
def test_every_method_trains_and_does_so_again_bit_by_bit(study, name, tmp_path):
    study, method = study(tmp_path), load(name)
    assert [*method.knobs] in (["lr", "rest"], ["lr", "rest", "decay"])
    first, second, other = (train(study, method, method.knobs, seed, final=True) for seed in (0, 0, 1))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert first["hash"] != other["hash"]
    assert first["train"][-1] < first["train"][0]
    assert len(first["curve"]) == len(first["train"]) == 16
    assert first["curve"][-1] == pytest.approx(first["loss"], rel=1e-5)


def moved_by(study, name, parameters):
    """Names of what `lr` and `decay` of a method move, of `parameters`; `rest` moves what `lr` does not."""
    if study is Tiny:
        return {"0.weight", "3.weight"}, {"0.weight", "3.weight"}
    if study is Units:
        convolutions = {"0.weight", "0.bias", "2.weight", "2.bias"}
        aside = {"muon_decay": {"0.bias", "2.bias"}, "units_sgd": {"2.bias"}, "units_adam": {"2.bias"}}.get(name, set())
        return convolutions - aside, convolutions - aside
    matrices = {key for key, value in parameters.items() if key.startswith("blocks") and value.ndim > 1}
    unpaired = {"pairs_adam": ("query", "key", "gate"), "psi_pairs": ("gate",)}.get(name)
    return matrices, {key for key in matrices if unpaired is None or key.split(".")[2] in unpaired}


@pytest.mark.parametrize(("study", "name"), CASES)
def test_every_knob_of_a_method_moves_what_it_says(study, name, tmp_path):
    """In the first step."""
    data, method = study(tmp_path), load(name)

    def after(**changed):
        torch.manual_seed(0)
        network = data.network()
        optimizers = method.optimizers(network, data.example(), **{**method.knobs, **changed})
        data.loss(network, *next(data.batches(torch.Generator().manual_seed(0)))).backward()
        for optimizer in optimizers:
            optimizer.step()
        return {key: value.clone() for key, value in network.named_parameters()}

    before = after()
    rate, decay = moved_by(study, name, before)
    expected = {"lr": rate, "rest": {*before} - rate, "decay": decay}
    for knob in method.knobs:
        moved = {key for key, value in after(**{knob: 2 * method.knobs[knob]}).items() if not value.equal(before[key])}
        assert moved == expected[knob], knob


@pytest.mark.parametrize(
    ("warm_up", "shares"),
    [
        (0, [(16 - step) / 16 for step in range(16)]),
        (3, [1 / 4, 2 / 4, 3 / 4, *((16 - step) / 16 for step in range(3, 16))]),
    ],
)
def test_rates_rise_and_fall_linearly_to_zero_from_each_knob(warm_up, shares, monkeypatch):
    monkeypatch.setattr(Tiny, "warm_up", warm_up)
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def optimizers(network, example, lr, rest):
        first, *others = network.parameters()
        return [Watched([{"params": [first], "lr": lr}, {"params": others, "lr": rest}])]

    train(Tiny(), methods.Method("watched", "", {}, optimizers), {"lr": 0.5, "rest": 0.25}, 0, final=False)
    assert seen == [[0.5 * share, 0.25 * share] for share in shares]


def test_only_final_runs_see_the_test_data():
    method = load("sgd_plain")
    assert "test accuracy" not in train(Tiny(), method, method.knobs, 0, final=False)


def test_a_run_that_diverges_ends_and_is_stored_without_a_loss():
    record = train(Tiny(), load("sgd_plain"), {"lr": 1e30, "rest": 1e30}, 0, final=False)
    assert record["loss"] is None
    assert len(record["curve"]) < 16
    json.loads(json.dumps(record), parse_constant=pytest.fail)


def test_runs_are_stored_one_by_one_and_go_on(tmp_path, mine):
    """Stopped after every few runs, a study ends with the same records."""
    told = lines(tmp_path / "whole", -1, mine)
    assert told[-1] == "mine is done: 25 runs"
    whole = runs.read(tmp_path / "whole", mine)
    for count in range(1, 27):
        lines(tmp_path / "parts", 1, mine)
        assert len(runs.read(tmp_path / "parts", mine)) == min(count, 25)
    parts = runs.read(tmp_path / "parts", mine)
    assert [{**r, "seconds": 0} for r in parts] == [{**r, "seconds": 0} for r in whole]
    assert [r["phase"] for r in whole] == ["sweep"] * 12 + ["final"] * 5 + ["rates"] * 8
    assert len((tmp_path / "whole" / "mine.json").read_text().splitlines()) == 25 + 2


def test_a_sweep_has_as_many_runs_as_knobs_ask_for(stored):
    for name in ("psi_sgdm", "sgd_decay"):
        records, method = runs.read(stored / "tiny", name), load(name)
        more = name == "sgd_decay"  # to settle its choice
        assert len(runs.losses_of(records)) == Tiny.budget * len(method.knobs) + more
        assert {len(record["node"]) for record in records} == {len(method.knobs)}


def test_a_stored_run_comes_out_again_and_a_changed_one_is_told(tmp_path):
    lines(tmp_path, 2, "psi_sgdm")
    made = partial(runs.made, Tiny(), load("psi_sgdm"))
    assert runs.again("psi_sgdm", 1, tmp_path, made) == {}
    path = tmp_path / "psi_sgdm.json"
    stored = runs.read(tmp_path, "psi_sgdm")[1]["loss"]
    path.write_text(path.read_text().replace(repr(stored), repr(stored + 1e-9)))
    assert runs.again("psi_sgdm", 1, tmp_path, made) == {"loss": (stored + 1e-9, stored)}


def test_other_centres_than_those_of_the_stored_runs_are_refused(stored):
    found, method = runs.read(stored / "tiny", "psi_sgdm"), load("psi_sgdm")
    assert runs.next_run(Tiny, method, found) is None
    moved = dataclasses.replace(method, knobs={**method.knobs, "lr": 0.3})
    with pytest.raises(RetractError, match="the centres .*'lr': 0.3.* have changed"):
        runs.next_run(Tiny, moved, found)


def test_two_workers_are_never_at_one_method(tmp_path, mine):
    with runs.alone(tmp_path, mine) as free:
        assert free
        assert lines(tmp_path, 1, mine) == ["mine: another worker is at it"]
    assert lines(tmp_path, 1, mine)[0].startswith("mine 0: sweep")


def test_no_run_begins_after_the_time(tmp_path, mine):
    """And methods that come later are left alone."""
    told = []
    with runs.alone(tmp_path, "psi_sgdm"):
        runs.work(Tiny(), [mine, "psi_sgdm"], 0.0, tmp_path, told.append)
    assert runs.read(tmp_path, mine) == told == []


def test_the_table_has_the_numbers_of_the_runs(stored):
    """Accuracies 60 … 64 and 61.1, 62, …, 65: the differences are 1.1, 1, 1, 1, 1, of mean 1.02 and error 0.02."""
    text = pages.generated(Tiny, stored / "tiny")
    first, second = (line.split(" | ") for line in text.splitlines()[2:4])
    assert first[:2] == ["| PSI-SGDM", "0.2"]
    assert first[3:6] == ["–", "63.02 ± 0.69", "**+1.02 [+0.96, +1.08]**"]
    assert second[:4] == ["| SGD with decay", "0.2", "0.2", "0.002"]
    assert second[4:6] == ["62.00 ± 0.71", "–"]
    assert second[-1] == "16 |"
    assert first[-1] == f"{16 * (2 + (1 - 0.5) / 0.6) / 3:.0f} |"
    assert "57 runs, 0.6 hours of one core (a machine). The median run takes 36 s." in text


def test_a_target_is_what_all_runs_of_the_baseline_reach(stored):
    path = stored / "tiny" / "sgd_decay.json"
    path.write_text(re.sub(r'("final".*"seed": 103.*"loss": )[^,]*,', r"\g<1>0.7507,", path.read_text()))
    head, *lines = pages.generated(Tiny, stored / "tiny").splitlines()
    assert head.endswith("steps to 0.751 |")
    steps = [2 + (1 - 0.7507) / 0.5] * 4 + [3]  # that run ends there; its curve, which is rounded, ends at 0.5
    assert f"| {16 * sum(steps) / 5 / 3:.0f} |" in next(line for line in lines if line.startswith("| SGD with decay"))


def test_a_final_run_that_diverges_is_told_and_stands_last(stored):
    found = runs.read(stored / "tiny", "psi_sgdm")
    lost = [{**r, "loss": None, "curve": []} if r["phase"] == "final" and r["seed"] == 102 else r for r in found]
    runs.store(stored / "tiny", load("psi_sgdm"), lost)
    text = pages.generated(Tiny, stored / "tiny")
    assert text.splitlines()[3].startswith(
        "| PSI-SGDM | 0.2 | 0.2 | – | 1 of 5 diverged | – | 1 of 5 diverged | – | 4 of 5"
    )
    assert "| PSI-SGDM | lr 0.2, rest 0.2 | 1 of 5 diverged | – | diverged |" in summary.generated(
        Tiny, stored / "tiny"
    )
    pages.draw(pages.rows(Tiny, stored / "tiny"), Tiny, stored / "tiny.svg")


def test_a_study_names_methods_that_are_compared_with_others_than_the_baseline(stored, monkeypatch):
    monkeypatch.setattr(Tiny, "pairs", (("sgd_decay", "psi_sgdm"), ("psi_sgd", "sgd_plain")))
    text = pages.generated(Tiny, stored / "tiny")
    assert (
        "| difference | test accuracy in % | test loss |\n| --- | ---: | ---: |\n| SGD with decay – PSI-SGDM | **-1.02"
        in text
    )
    assert "PSI-SGD –" not in text


def test_where_losses_are_compared_the_least_comes_first(stored):
    """In `stored` PSI-SGDM ends 0.1 lower, in every seed."""

    class Losses(Tiny):
        scores = ("loss",)

    head, _, first, second = pages.generated(Losses, stored / "tiny").splitlines()[:4]
    assert head == "| method | lr | rest | decay | test loss | difference to SGD with decay | steps to 0.500 |"
    assert first.startswith("| PSI-SGDM | 0.2 | 0.2 | – | 0.4000 ± 0.0000 | **-0.1000 [-0.1000, -0.1000]** |")
    assert second.startswith("| SGD with decay | 0.2 | 0.2 | 0.002 | 0.5000 ± 0.0000 | – |")


def test_a_sweep_that_ends_at_an_edge_is_told(stored):
    """After twice its runs, where the loss falls and falls."""
    ends = {"test accuracy": 60.0, "test loss": 1.0}
    found = make(Tiny, "sgd_decay", stored, lambda run: -run.values["lr"], lambda run: ends)
    assert len(runs.losses_of(found)) == 2 * 3 * Tiny.budget
    assert "| SGD with decay (at an edge) |" in pages.generated(Tiny, stored / "tiny")
    make(Wider, "psi_sgdm", stored, lambda run: -run.values["lr"], None)
    assert ", at an edge) |" in pages.generated(Tiny, stored / "tiny", (Wider,)).split("Wider |")[1]


def test_the_picture_is_drawn_a_second_time_alike(stored, tmp_path):
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        pages.draw(pages.rows(Tiny, stored / "tiny"), Tiny, path)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 10_000


def test_methods_that_are_not_finished_are_not_compared(stored):
    path = stored / "tiny" / "psi_sgdm.json"
    found = json.loads(path.read_text())["runs"]
    runs.store(stored / "tiny", load("psi_sgdm"), found[:-1])
    assert "Not finished: PSI-SGDM (24 runs)." in pages.generated(Tiny, stored / "tiny")
    assert (
        pages.generated(Tiny, stored / "none" / "tiny") == "Not finished: SGD with decay (0 runs), PSI-SGDM (0 runs)."
    )


def test_runs_of_an_earlier_choice_serve_the_one_after_it(stored):
    """A sweep that goes on may choose twice the rate: two seeds at it, and those at ¼, ½ and 2 times it, are there already, and no run
    is missing in the end."""
    found = runs.read(stored / "tiny", "psi_sgdm")
    moved = [{**r, "node": [0, 1]} if r["phase"] != "sweep" else r for r in found]
    final = [{**r, "values": {**r["values"], "lr": r["values"]["lr"] / 2}} for r in moved if r["phase"] != "sweep"]
    runs.store(stored / "tiny", load("psi_sgdm"), [r for r in moved if r["phase"] == "sweep"] + final)
    while (run := runs.next_run(Tiny, load("psi_sgdm"), found := runs.read(stored / "tiny", "psi_sgdm"))) is not None:
        more = {"phase": run.phase, "values": run.values, "seed": run.seed, "node": run.node, "loss": 0.43}
        runs.store(stored / "tiny", load("psi_sgdm"), [*found, {**final[0], **more}])
    made = [(r["phase"], r["seed"], r["values"]["lr"]) for r in found if r["loss"] == 0.43]
    assert made == [
        ("final", 102, 0.2),
        ("final", 103, 0.2),
        ("final", 104, 0.2),
        ("rates", 100, 0.8),
        ("rates", 101, 0.8),
    ]
    row = pages.rows(Tiny, stored / "tiny")["psi_sgdm"]
    assert row.values["lr"] == 0.2
    assert [record["seed"] for record in row.final] == [100, 101, 102, 103, 104]


def test_a_study_after_another_sweeps_the_rate_about_what_was_chosen_there(stored):
    """PSI-SGDM has its least loss at twice the centres in `stored`; here at four times that."""
    found = make(Wider, "psi_sgdm", stored, lambda run: 0.5 + 0.015 * (run.node[0] - 2) ** 2, None)
    assert {record["phase"] for record in found} == {"sweep"}
    assert all(record["values"] == {"lr": 0.2 * 2.0 ** record["node"][0], "rest": 0.2} for record in found)
    assert len(found) == Wider.budget
    text = pages.generated(Tiny, stored / "tiny", (Wider,))
    assert "| best lr (held-out loss, runs); every lr within 0.02 of it | Tiny | Wider |" in text
    assert "| PSI-SGDM | 0.2 (0.401, 2) | 0.8 (0.500, 2); 0.4 – 1.6 |" in text
    assert "| SGD with decay | 0.2 (0.500, 1) | – |" in text
    assert (
        "| loss more at the setting of Tiny (runs) | Wider |\n| --- | ---: |\n| SGD with decay | – |\n| PSI-SGDM | +0.060 (1) |"
        in text
    )
    assert f"{57 + 7} runs, 0.6 hours" in text
    assert "The median run takes 36 s (Tiny), 36 s (Wider)." in text
    with pytest.raises(RetractError, match="have changed"):
        runs.next_run(Wider, load("psi_sgdm"), runs.read(stored / "wider", "psi_sgdm"))
    ends = {"test accuracy": 60.0, "test loss": 1.0}
    make(Tiny, "psi_sgdm", stored, lambda run: 0.5 + 0.02 * sum(k * k for k in run.node), lambda run: ends)
    with pytest.raises(RetractError, match="have changed"):
        pages.generated(Tiny, stored / "tiny", (Wider,))


def test_a_study_may_have_another_centre_of_the_rest(stored):
    class Other(Tiny):
        centre_of_rest = 0.5

    assert runs.method_in(Other, "psi_sgdm", stored / "other").knobs == {"lr": 0.1, "rest": 0.5}


def test_a_study_after_another_waits_for_its_sweep(stored):
    path = stored / "tiny" / "psi_sgdm.json"
    runs.store(stored / "tiny", load("psi_sgdm"), json.loads(path.read_text())["runs"][: 2 * Tiny.budget - 1])
    told = []
    runs.work(Wider(), ["psi_sgdm"], float("inf"), stored / "wider", told.append)
    assert told == ["psi_sgdm: not yet swept in the study before this one"]
