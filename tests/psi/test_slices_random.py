"""`psi.find` on slices of random fused weights, against rescaling one run of slices after the other.

    python -m pytest -m long -s tests/psi/test_slices_random.py

prints how many points there were.
"""

import copy

import pytest
import torch
from retract import psi
from slice_brute_force import INPUTS, RandomFused, Runs
from twins import in_general_position, widened, without_eps


def survey(numbers):
    """What is not as brute force has it, and the number of points."""
    wrong, count = [], 0
    for number in numbers:
        torch.manual_seed(number)
        model, x = RandomFused(number), torch.randn(5, 4, INPUTS)
        report = psi.find(model, x)
        force = Runs(in_general_position(widened(copy.deepcopy(model)), number), (x.double(),), context=without_eps)
        found = {point for f in report if f.name == "project.weight" for point in force.reported(f)}
        expected = set(force.smallest())
        count += len(expected)
        if found != expected:
            wrong.append((number, model.layout, model.sections, [sorted(p)[::INPUTS] for p in found ^ expected]))
    return wrong, count


def test_random_fused_weights():
    wrong, count = survey(range(6))
    assert not wrong
    assert count > 10


@pytest.mark.long
def test_300_random_fused_weights():
    wrong, count = survey(range(300))
    print("", f"{count} points, wrong: {len(wrong)}", *wrong, sep="\n")
    assert not wrong
    assert count > 1000
