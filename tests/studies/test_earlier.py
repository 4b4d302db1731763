"""The tables of final runs at earlier choices."""

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
    assert earlier.generated([Tiny], stored).splitlines() == [
        "| Tiny: at an earlier choice | rates | test accuracy in % | difference to the later choice |",
        "| --- | --- | ---: | ---: |",
        "| SGD with decay | lr 0.2, rest 0.2, decay 0.25 | 62.50 ± 0.78 | **+0.50 [+0.30, +0.70]** |",
        "",
        "| Tiny: difference to SGD with decay at lr 0.2, rest 0.2, decay 0.25 | test accuracy in % |",
        "| --- | ---: |",
        "| PSI-SGDM | **+0.52 [+0.28, +0.76]** |",
    ]


def test_only_for_the_baseline_others_are_compared_with_the_earlier_choice(stored):
    append(stored, "psi_sgdm", 0.25, 0.5, range(100, 105))
    tables = earlier.generated([Tiny], stored).split("\n\n")
    assert [table.splitlines()[-1][:12] for table in tables] == ["| PSI-SGDM |"]
