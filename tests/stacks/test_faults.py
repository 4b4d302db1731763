"""What goes wrong in a run: a kill, a step that breaks off, a damaged checkpoint."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import batches, declare_all, normed_cnn, train
from paths import PATHS
from retract import param_groups
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.manifolds.errors import GradientError, RetractError, StateError, StepError
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD, flat, foreach, fused, reference
from retract.psi.experiments import checkpoint
from torch import nn

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.long)])
def test_a_killed_run_goes_on_bitwise(kills, tmp_path):
    """At random moments, those of saving among them; the checkpoint is whole after each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "support")}
    command = [sys.executable, HERE / "kills.py", tmp_path, str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kills"], report["equal"], report["half-written"]) == (kills, kills, 0), report
    if kills >= 50:
        assert report["while saving"] > 0, report
        assert len(set(report["at step"])) > 10, report
    print(report)
