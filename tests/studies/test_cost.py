"""The times of steps: of all methods whose settings are known, in turn, relative to the baseline."""

import time

import pytest
import torch
from retract.errors import RetractError
from studies import cost, methods
from studies.methods import load
from tiny_study import Tiny, Wider


def test_times_are_relative_to_the_baseline_round_by_round(tmp_path, monkeypatch):
    """A clock that stands still but for the second method's steps, of 20 ms each, and the baseline's, of 10, 40 and 20 ms."""
    now, turns = [0.0], []
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    class Slow(torch.optim.SGD):
        def __init__(self, params, seconds):
            super().__init__(params, lr=0.0)
            self.seconds = seconds

        def step(self, closure=None):
            turns.append(self.seconds)
            now[0] += self.seconds if self.seconds == 0.02 else (0.01, 0.01, 0.04, 0.02)[len(turns) // 20]

    def slow(seconds):
        return lambda network, example, **knobs: [Slow(network.parameters(), seconds)]

    made = {name: methods.Method(name, name, {}, slow(s)) for name, s in (("sgd_decay", 0.01), ("psi_sgdm", 0.02))}
    monkeypatch.setattr(cost, "method_in", lambda study, name, folder: made[name])
    assert cost.generated(Tiny(), tmp_path, 3).splitlines()[2:] == [
        "| sgd_decay | 20.0 | 1.00 |",
        "| psi_sgdm | 20.0 | 1.00 |",
    ]
    assert turns == ([0.01] * 10 + [0.02] * 10) * 4


def test_methods_without_a_setting_are_left_out(stored):
    (stored / "tiny" / "psi_sgdm.json").unlink()
    assert [line.split(" | ")[0] for line in cost.generated(Wider(), stored / "wider", 1).splitlines()[2:]] == [
        "| SGD with decay"
    ]


def test_a_method_that_is_not_there_and_a_knob_without_a_grid_are_told(tmp_path, monkeypatch):
    with pytest.raises(RetractError, match="there is no method nope in docs/studies/methods: these are adamg, adamh"):
        load("nope")
    (tmp_path / "turned.py").write_text('TITLE = "Turned"\nKNOBS = {"lr": 0.1, "angle": 1.0}\noptimizers = list\n')
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    with pytest.raises(RetractError, match="turned has the knobs angle, for which there is no grid"):
        load("turned")
