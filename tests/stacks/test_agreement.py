"""`psi.find` and `psi.declare` on several ranks: alike, or refused on all."""

import warnings

import pytest
import torch
import torch.distributed
from processes import together
from retract import declared, psi
from retract.errors import RetractError
from retract.psi.agreement import agreed
from torch import nn


class Experts(nn.Module):
    """An expert that gets no sample has no gradient, so that nothing can be said of it."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)) for _ in range(3))
        self.out = nn.Linear(8, 2)

    def forward(self, x, route):
        h = torch.stack([expert(x) for expert in self.experts], 1)
        return self.out((h * nn.functional.one_hot(route, 3).to(h)[..., None]).sum(1))


def outcome(call):
    try:
        return "declared " + " ".join(call().declared)
    except RetractError as error:
        return f"{type(error).__name__}: {error}"


def on_each_rank(rank):
    said = {}
    torch.manual_seed(0)
    everywhere, x = torch.arange(18) % 3, torch.randn(18, 6)
    model = Experts()
    torch.manual_seed(rank)
    said["own inputs"] = outcome(lambda: psi.declare(model, (torch.randn(18, 6), everywhere)))
    model = Experts()
    said["find"] = outcome(lambda: psi.find(model, (x, everywhere % (2 + rank))))
    said["declare"] = outcome(lambda: psi.declare(model, (x, everywhere % (2 + rank))))
    said["left"] = " ".join(declared(model))
    broken = x.clone()
    broken[:, rank] = float("nan") if rank else 0
    said["a failure"] = outcome(lambda: psi.declare(model, (broken, everywhere)))
    if rank:
        with torch.no_grad():
            model.out.weight.zero_()
    said["a failure that looks different"] = outcome(lambda: psi.find(model.eval() if rank else model, (x, everywhere)))
    model = Experts()
    if rank:  # passes `find`, and cannot be declared
        model.register_buffer("running_var", torch.full((2,), 2.0))
    said["while declaring"] = outcome(lambda: psi.declare(model, (x, everywhere), representative="unit"))
    said["left then"] = " ".join(declared(model))
    stage = nn.Sequential(nn.Linear(6, 4 + rank), nn.LayerNorm(4 + rank))
    said["stages"] = outcome(lambda: psi.declare(stage, x))
    return said


def test_ranks_declare_the_same_or_nothing():
    first, second = together(2, on_each_rank)
    weights = "declared " + " ".join(f"experts.{i}.0.weight experts.{i}.0.bias" for i in range(3))
    assert first["own inputs"] == second["own inputs"] == weights
    for said in (first, second):
        for key in ("find", "declare"):
            assert said[key].startswith(
                "RetractError: psi.find comes out differently on different ranks: experts.2.0.weight ("
            )
            assert "rank 0: none; rank 1: tensor" in said[key]
        assert said["left"] == said["left then"] == ""
        assert said["stages"] == "declared 0.weight 0.bias"
    assert "psi.find failed on rank 1, and is given up on all: ProbeError: " in first["a failure"]
    assert second["a failure"].startswith("ProbeError: ")
    assert first["while declaring"].startswith(
        "RetractError: psi.declare failed on rank 1, and is given up on all: DeclarationError"
    )
    assert second["while declaring"].startswith("DeclarationError: moving the rows of")


def test_ranks_that_do_not_come(monkeypatch):
    def nobody(*_):
        raise RuntimeError("Timed out waiting 1800000ms")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", nobody)
    with pytest.raises(
        RetractError, match=r"others did not come \(Timed out.*Call it on every rank, or before init_process_group"
    ):
        psi.find(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.randn(4, 3))


def test_alone_nothing_is_asked():
    assert agreed("this", lambda: 1, lambda result: {}) == 1
    with pytest.raises(ZeroDivisionError):
        agreed("this", lambda: 1 // 0, lambda result: {})


def test_signature_and_docstring_are_those_of_find():
    assert psi.find.__name__ == "find"
    assert "probes" in psi.find.__doc__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        psi.find(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.randn(4, 3))
