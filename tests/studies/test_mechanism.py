"""Turns of rows: measured, and prescribed."""

from functools import partial

import pytest
import torch
from retract.errors import RetractError
from retract.manifolds import PSI
from studies import mechanism, mechanism_page, runs
from studies.loop import train
from studies.methods import Method, load
from studies.protocol import Run
from studies.split import on, split
from tiny_study import Tiny
from torch import nn

SETTINGS = {
    "sgd_decay": {"lr": 0.2, "rest": 0.1, "decay": 1e-3},
    "psi_sgdm_nesterov": {"lr": 0.1, "rest": 0.1},
    "psi_sgdm": {"lr": 0.1, "rest": 0.1},
    "psi_adam": {"lr": 0.05, "rest": 4e-3},
    "muonh": {"lr": 0.02, "rest": 4e-3},
}


def test_turns_are_the_angles_between_rows():
    w = nn.Parameter(torch.eye(3)[:2].clone())
    turns = mechanism.Turns([w], optimizer := torch.optim.SGD([w], lr=1.0))
    w.grad = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.5, 0.0]])  # by 45°, and along itself
    optimizer.step()
    torch.testing.assert_close(turns.angles[0][0], torch.tensor([[torch.pi / 4], [0.0]]))


def test_rows_turn_as_they_are_driven():
    torch.manual_seed(0)
    network, study = Tiny().network(), Tiny()
    weights, _ = split(network, study.example())
    groups, _ = on(PSI(), network, study.example())
    generator = torch.Generator().manual_seed(0)
    wanted = [[0.1 * torch.rand(len(w), 1, generator=generator) for w in weights] for _ in range(6)]
    turns = mechanism.Turns(weights, optimizer := mechanism.drive(groups, weights, wanted))
    for (x, y), _ in zip(study.batches(generator), wanted, strict=False):
        optimizer.zero_grad()
        study.loss(network, x, y).backward()
        optimizer.step()
    for found, angles in zip(turns.angles, wanted, strict=True):
        for a, b in zip(found, angles, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_driven_at_the_turns_of_sgd_it_goes_the_way_of_sgd():
    """Up to what the norms of SGD's rows change in the memory of its momentum."""
    run = Run("final", SETTINGS["sgd_decay"], 100, ())
    record, sgd = (mechanism.made(Tiny(), name, run) for name in (mechanism.DRIVEN, "sgd_decay"))
    other = train(Tiny(), load("psi_sgdm"), {"lr": 0.4, "rest": 0.1}, 100, False)
    torch.testing.assert_close(torch.tensor(record["turns"]), torch.tensor(sgd["turns"]), rtol=1e-3, atol=0.0)
    apart, beside = (abs(torch.tensor(one["train"]) - torch.tensor(sgd["train"])).mean() for one in (other, record))
    assert beside < 0.3 * apart


def trained(told):
    """The methods of the runs that a worker has told of."""
    return [line.split()[0] for line in told if "final" in line]


def test_runs_are_stored_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanism, "SEEDS", (100,))
    told = []
    mechanism.work(Tiny(), ["sgd_decay"], 1.0, tmp_path, told.append)
    assert told == ["sgd_decay: not yet swept in the study tiny, which chooses its setting"]
    monkeypatch.setattr(mechanism, "chosen_in", lambda study, name, results: SETTINGS[name])
    told, names = [], [*mechanism.METHODS, mechanism.DRIVEN]
    with runs.alone(tmp_path / mechanism.FOLDER, names[1]):
        mechanism.work(Tiny(), names, 0.0, tmp_path, told.append)
    assert told == []
    with runs.alone(tmp_path / mechanism.FOLDER, "psi_sgdm"):
        mechanism.work(Tiny(), names, 1.0, tmp_path, told.append)
    assert trained(told) == [name for name in names if name != "psi_sgdm"]
    assert "psi_sgdm: another worker is at it" in told
    mechanism.work(Tiny(), ["psi_sgdm"], 1.0, tmp_path, told.append)
    mechanism.work(Tiny(), names, 1.0, tmp_path, told.append)
    assert len(trained(told)) == 6
    assert told[-6:] == [f"{name} is done: 1 runs" for name in names]
    first, second = (runs.read(tmp_path / mechanism.FOLDER, name) for name in (mechanism.METHODS[0], mechanism.DRIVEN))
    assert len(second[0]["turns"]) == 16
    assert second[0]["on"] == first[0]["on"]
    changed = {**SETTINGS, "psi_adam": {"lr": 0.1, "rest": 4e-3}}
    monkeypatch.setattr(mechanism, "chosen_in", lambda study, name, results: changed[name])
    mechanism.work(Tiny(), names, 1.0, tmp_path, told.append)
    assert trained(told)[6:] == ["psi_adam"]
    stored = mechanism.stored(tmp_path, changed)["psi_adam"]
    assert [record["values"] for record in stored] == [changed["psi_adam"]]
    for name in ("sgd_decay", mechanism.DRIVEN):
        made = partial(mechanism.made, Tiny(), name)
        assert runs.again(name, 0, tmp_path / mechanism.FOLDER, made) == {}
        path = tmp_path / mechanism.FOLDER / f"{name}.json"
        bits = runs.read(path.parent, name)[0]["hash"]
        path.write_text(path.read_text().replace(bits, "other"))
        assert runs.again(name, 0, path.parent, made) == {"hash": ("other", bits)}
    with pytest.raises(
        RetractError, match="psi_adm: not among the methods whose turns are compared, which are sgd_decay"
    ):
        mechanism.work(Tiny(), ["psi_adm"], 1.0, tmp_path)


def test_the_table(tmp_path, monkeypatch):
    """Turns of 0.001 · (16 − i), and accuracies 60, …, 64 but for one method, that is 1, 1, 1.3, 1 and 1 better."""
    assert mechanism_page.generated(tmp_path) == "Not run yet: 30 of 30 runs are missing."
    for name in (*mechanism.METHODS, mechanism.DRIVEN):
        better = (1.0, 1.0, 1.3, 1.0, 1.0) if name == "psi_adam" else 5 * (0.0,)
        records = [
            {
                "phase": "final",
                "seed": seed,
                "values": {},
                "turns": [0.001 * (16 - i) for i in range(16)],
                "seconds": 900.0,
                "loss": 1.0,
                "test accuracy": 60.0 + i + more,
            }
            for i, (seed, more) in enumerate(zip(mechanism.SEEDS, better, strict=True))
        ]
        (tmp_path / mechanism.FOLDER).mkdir(exist_ok=True)
        runs.store(tmp_path / mechanism.FOLDER, Method(name, "", {}, list), records[::-1])
    # What is stored is of an earlier choice.
    monkeypatch.setattr(mechanism, "chosen_in", lambda study, name, results: {"lr": 0.1})
    assert mechanism_page.generated(tmp_path) == "Not run yet: 30 of 30 runs are missing."
    monkeypatch.setattr(mechanism, "chosen_in", lambda study, name, results: {})
    lines = mechanism_page.generated(tmp_path).splitlines()
    assert lines[2] == "| SGD with decay | 15.0 | 12.0 | 8.0 | 4.0 | 1.0 | 62.00 ± 0.71 | – |"
    assert lines[5] == "| Adam on PSI | 15.0 | 12.0 | 8.0 | 4.0 | 1.0 | 63.06 ± 0.71 | **+1.06 [+0.89, +1.23]** |"
    assert lines[-1] == "5 seeds, 7.5 hours of one core."
