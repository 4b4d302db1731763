"""`psi.find` on small configurations of public architectures, as they are initialized, against `brute_force`.

    python -m pytest -m long tests/psi/test_find_architectures.py

An architecture is skipped where its package is missing; `make .venv/architectures` installs them all.
"""

import copy
from importlib.util import find_spec

import pytest
import torch
from architectures_diffusers import DIFFUSERS
from architectures_images import MONAI, VITS
from architectures_others import GRAPHS, OPERATORS, SEQUENCES, TABLES, X_TRANSFORMERS
from architectures_speech import SERIES
from architectures_transformers import LANGUAGE, VISION
from brute_force import BruteForce
from retract import psi
from twins import in_general_position, wide, widened, without_eps
from verdicts import Survey

ALL = [LANGUAGE, VISION, SERIES, DIFFUSERS, MONAI, VITS, X_TRANSFORMERS, SEQUENCES, TABLES, GRAPHS, OPERATORS]
ARCHITECTURES = {name: architecture for table in ALL for name, architecture in table.items()}


def measure(name, result):
    """What `find` says of one architecture, added to the survey."""
    torch.manual_seed(0)
    model, args, kwargs = ARCHITECTURES[name].build()
    model.train()
    twin = in_general_position(widened(copy.deepcopy(model)))
    report = psi.find(model, args, kwargs)
    oracle = BruteForce(twin, wide(args), wide(kwargs), context=without_eps, points=3, moves=2)
    result.add(name, report, oracle, BruteForce(model, args, kwargs, points=3, moves=2))


def test_names():
    assert len(ARCHITECTURES) == sum(map(len, ALL)) >= 60


@pytest.mark.long
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore")
def test_architecture(name):
    package = ARCHITECTURES[name].package
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make .venv/architectures")
    result = Survey()
    measure(name, result)
    assert not result.wrong, result
    assert not result.over(), result
