import pytest
from made_runs import make
from studies.methods import load
from tiny_study import Tiny


@pytest.fixture
def stored(tmp_path):
    """Complete runs of the tiny study's methods. The second is better by 1 point and 0.1; both have their least loss at twice the
    centres."""
    for name, better in (("sgd_decay", 0.0), ("psi_sgdm", 0.1)):
        centre = load(name).knobs["lr"]

        def loss(run, better=better, centre=centre):
            found = 0.5 + 0.03 * sum((k - 1) ** 2 for k in run.node) + 0.001 * run.seed * (run.phase == "sweep")
            return found + 0.05 * abs(run.values["lr"] / centre - 2.0 ** run.node[0]) - better

        def final(run, better=better, loss=loss):
            accuracy = 60.0 + run.seed % 5 + 10 * better + 0.1 * (run.seed == 100) * (better > 0)
            return {"test accuracy": accuracy, "test loss": loss(run)}

        make(Tiny, name, tmp_path, loss, final)
    return tmp_path
