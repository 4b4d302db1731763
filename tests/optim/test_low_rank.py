"""Low-rank matrices are recovered at one learning rate for all condition numbers and representatives."""

import runpy
from pathlib import Path

import pytest

low_rank = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "benchmarks" / "low_rank.py"))
METHODS, problem, run, unbalanced = (low_rank[name] for name in ("METHODS", "problem", "run", "unbalanced"))


@pytest.mark.slow
@pytest.mark.parametrize("condition", low_rank["CONDITIONS"])
@pytest.mark.parametrize("kind", ["sensing", "completion"])
def test_recovery_does_not_depend_on_the_condition(kind, condition):
    """Below 1e-20 within 500 steps, unbalanced factors as balanced ones; ScaledGD, the same iteration, takes as many steps."""
    loss, start = problem(kind, condition, seed=0)
    make, (lr,) = METHODS["FixedRank, lr 0.5"]
    steps, last = run(make, lr, loss, start)
    assert last <= 1e-20
    assert steps < 300
    assert abs(run(make, lr, loss, unbalanced(start, 0))[0] - steps) <= 1
    scaled, (lr,) = METHODS["ScaledGD, lr 0.5"]
    assert abs(run(scaled, lr, loss, start)[0] - steps) <= 1
    if condition == 1000:
        assert run(METHODS["SGD"][0], 0.3, loss, start)[1] > 1e-12
