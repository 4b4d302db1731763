"""Tests of the tests: each fault of ``support/mutants.py``, put into a copy of the package, makes the test named for it fail."""

import re

import pytest
from mutant import ROOT, copied, outcome
from mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.kind)
def test_the_table_fits_the_sources(mutant):
    """The text to change occurs once, and the test is there."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, mutant.old
    assert mutant.new != mutant.old
    file, _, test = mutant.node.partition("::")
    assert re.search(rf"^def {test.partition('[')[0]}\(", (ROOT / file).read_text(), re.M), mutant.node


def test_no_fault_stands_twice_in_the_table():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.kind for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.long
def test_without_a_fault_the_tests_pass(tmp_path):
    run = outcome(copied(tmp_path), sorted({mutant.node for mutant in MUTANTS}))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.kind)
def test_a_fault_is_noticed(mutant, tmp_path):
    """By a failure; a package that does not load or a test that is not found has another exit code."""
    run = outcome(copied(tmp_path, mutant), [mutant.node])
    assert run.returncode == 1, run.stdout + run.stderr
