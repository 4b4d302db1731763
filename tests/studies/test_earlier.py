"""The tables of final runs at earlier choices."""

from made_runs import make
from studies import earlier, runs
from studies.methods import load
from tiny_study import Tiny


def append(stored, name, decay, change, seeds):
    """Final runs like those of a method, at another decay and with accuracies that differ by `change`, further apart by seed."""
    found = runs.read(stored / "tiny", name)
    for record in [r for r in found if r["phase"] == "final" and r["seed"] in seeds]:
        accuracy = record["test accuracy"] + change + 0.1 * (record["seed"] - 102)
        found.append({**record, "values": {**record["values"], "decay": decay}, "test accuracy": accuracy})
    runs.store(stored / "tiny", load(name), found)


def test_without_any_there_is_no_table(stored):
    assert earlier.generated([Tiny], stored) == ""


def test_differences_are_to_the_later_choice_and_to_the_baseline_at_the_earlier_one(stored):
    append(stored, "sgd_decay", 0.25, 0.5, range(100, 105))
    append(stored, "sgd_decay", 4.0, 0.5, range(100, 104))
    append(stored, "psi_sgdm", 0.25, 0.3, range(100, 105))
    assert earlier.generated([Tiny], stored).splitlines() == [
        "| Tiny: at an earlier choice | rates | test accuracy in % | difference to the later choice |",
        "| --- | --- | ---: | ---: |",
        "| SGD with decay | lr 0.2, rest 0.2, decay 0.25 | 62.50 ± 0.78 | **+0.50 [+0.30, +0.70]** |",
        "| PSI-SGDM | lr 0.2, rest 0.2, decay 0.25 | 63.32 ± 0.76 | **+0.30 [+0.10, +0.50]** |",
        "",
        "| Tiny: difference to SGD with decay at lr 0.2, rest 0.2, decay 0.25 | test accuracy in % |",
        "| --- | ---: |",
        "| PSI-SGDM | **+0.52 [+0.28, +0.76]** |",
        "| PSI-SGDM at lr 0.2, rest 0.2, decay 0.25 | **+0.82 [+0.76, +0.88]** |",
    ]


def test_only_for_the_baseline_others_are_compared_with_the_earlier_choice(stored):
    append(stored, "psi_sgdm", 0.25, 0.5, range(100, 105))
    tables = earlier.generated([Tiny], stored).split("\n\n")
    assert [table.splitlines()[-1][:12] for table in tables] == ["| PSI-SGDM |"]


def test_where_losses_are_compared_the_least_comes_first(stored, monkeypatch):
    """Losses of the three methods are 0.5, 0.4 and 0.3; those of the baseline at its earlier choice are twice as large."""
    monkeypatch.setattr(Tiny, "scores", ("loss",))
    monkeypatch.setattr(Tiny, "methods", (*Tiny.methods, "sgd_plain"))
    make(Tiny, "sgd_plain", stored, lambda _: 0.3, lambda run: {"test accuracy": 50.0, "test loss": 0.3})
    found = runs.read(stored / "tiny", "sgd_decay")
    before = [record for record in found if record["phase"] == "final"]
    moved = [{**r, "values": {**r["values"], "decay": 0.25}, "test loss": 2.0 * r["test loss"]} for r in before]
    runs.store(stored / "tiny", load("sgd_decay"), [*found, *moved])
    lines = earlier.generated([Tiny], stored).splitlines()
    assert (
        lines[2]
        == "| SGD with decay | lr 0.2, rest 0.2, decay 0.25 | 1.0000 ± 0.0000 | **+0.5000 [+0.5000, +0.5000]** |"
    )
    assert lines[-2:] == [
        "| SGD | **-0.7000 [-0.7000, -0.7000]** |",
        "| PSI-SGDM | **-0.6000 [-0.6000, -0.6000]** |",
    ]
