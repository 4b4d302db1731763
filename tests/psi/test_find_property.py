"""`psi.find` on random small networks of many kinds, against rescaling points one at a time and all at once.

    python -m pytest -m long -s tests/psi/test_find_property.py

prints how many weights were looked at, and what was missed, by kind.
"""

import pytest
from brute_force import BruteForce
from random_networks import Plan
from retract import psi
from verdicts import MISSES, Survey


def survey(numbers):
    """All findings on the networks of these numbers against the brute force."""
    result = Survey()
    for number in numbers:
        plan = Plan(number)
        model, x = plan.build(), plan.inputs()
        report = psi.find(model, x)
        result.add(plan, report, BruteForce(plan.twin(), (x.double(),)), BruteForce(model, (x,)))
    return result


def test_random_networks():
    result = survey(range(20))
    assert not result.wrong, result
    assert result.invariant > 20


@pytest.mark.long
def test_2000_random_networks():
    result = survey(range(2000))
    print("", result, sep="\n")
    assert not result.wrong, result
    assert not result.over(), result
    assert result.invariant > 2000
    assert set(result.kinds) <= set(MISSES)
