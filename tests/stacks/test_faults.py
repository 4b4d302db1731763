"""What goes wrong in a run: a kill, a step that breaks off, a damaged checkpoint."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from experiments import checkpoint
from paths import PATHS
from retract.errors import GeometryError, GradientError, RetractError, StateError, StepError
from retract.manifolds import PSI, Euclidean, Grassmann, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianAdam
from retract.optim.execution import reference, rows
from torch import nn

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.long)])
def test_a_killed_run_goes_on_bitwise(kills, tmp_path):
    """At random moments, those of saving among them; the checkpoint is whole after each."""
    folders = HERE.parent / "support", Path(checkpoint.__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, HERE / "kills.py", tmp_path, str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kills"], report["equal"], report["half-written"]) == (kills, kills, 0), report
    if kills >= 50:
        assert report["while saving"] > 0, report
        assert len(set(report["at step"])) > 10, report


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_formers_place(tmp_path, monkeypatch):
    path, calls = tmp_path / "run.pt", []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, true=true: (calls.append(name), true(*a)))
    checkpoint.save({"a": torch.ones(3), "b": [1, "x", None, 2.5]}, path)
    assert calls[:2] == ["fsync", "replace"]
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["a"], torch.ones(3))
    assert loaded["b"] == [1, "x", None, 2.5]
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save({"a": torch.zeros(3)}, path)
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3)), "the former one is still there"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_checkpoints_that_are_none(tmp_path):
    path, trace = tmp_path / "run.pt", str(tmp_path / "trace")
    with pytest.raises(RetractError, match=r"no checkpoint .*run.pt; start afresh"):
        checkpoint.load(path)
    checkpoint.save({"a": torch.arange(10_000)}, path)
    whole = path.read_bytes()
    pickled = pickle.dumps(Evil(trace))
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"rubbish", pickled):
        path.write_bytes(damaged)
        with pytest.raises(
            RetractError, match=r"run.pt is not a whole checkpoint of plain values .*; use an earlier one"
        ):
            checkpoint.load(path)
    torch.save({"a": Evil(trace)}, path)
    with pytest.raises(RetractError, match="is not a whole checkpoint of plain values"):
        checkpoint.load(path)
    assert not Path(trace).exists()


FAILING = {"reference": (reference, "update"), "foreach": (rows.lists, "step"), "fused": (rows.Fused, "run")}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("before", [0, 2], ids=["first step", "later"])
@pytest.mark.parametrize("path", FAILING)
def test_a_step_that_breaks_off_says_what_has_moved(path, before, error, monkeypatch, device):
    """The points in front of the failure have moved, those behind have not, and from a checkpoint the run goes on bitwise."""
    names = [f"{name}{i}" for name in ("ray", "sphere", "line") for i in range(2)]
    manifolds = [PSI(), PSI(), Sphere(), Sphere(), Grassmann(1), Grassmann(1)]
    params = [nn.Parameter(m.nearest(torch.randn(3, 4, device=device))) for m in manifolds]
    groups = [
        {"params": params[i : i + 2], "names": names[i : i + 2], "manifold": manifolds[i]} for i in range(0, 6, 2)
    ]
    optimizer = RiemannianAdam(groups, lr=0.1, **PATHS[path])

    def step(seed):
        generator = torch.Generator(device).manual_seed(seed)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, device=device)
        optimizer.step()

    for seed in range(before):
        step(seed)
    saved = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    step(before)
    truth = [p.detach().clone() for p in params]

    def restore():
        with torch.no_grad():
            for p, value in zip(params, saved[0], strict=True):
                p.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(saved[1]))

    restore()
    module, name = FAILING[path]
    true, calls = getattr(module, name), []

    def fails(*arguments, **options):
        calls.append(None)
        if len(calls) == (4 if path == "reference" else 2):
            raise error("out of memory")
        return true(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        message = (
            rf"a step failed between its writes \({error.__name__}: out of memory\). Moved: ray0, ray1; perhaps moved in part: "
            "sphere0, sphere1; not moved: line0, line1. Restore model and optimizer from the last checkpoint"
        )
        with pytest.raises(StepError, match=message) as caught:
            step(before)
    assert isinstance(caught.value.__cause__, error)
    for p, old, new in zip(params[:2], saved[0], truth, strict=False):
        assert not torch.equal(p, old)
        assert torch.equal(p, new)
    assert all(torch.equal(p, old) for p, old in zip(params[4:], saved[0][4:], strict=True))
    restore()
    step(before)
    assert all(torch.equal(p, value) for p, value in zip(params, truth, strict=True))


BAD = {
    "sparse": lambda p: setattr(p, "grad", torch.ones_like(p).to_sparse()),
    "reshaped": lambda p: setattr(p, "data", p.detach().reshape(2, 6).clone()),
    "of other precision": lambda p: setattr(p, "data", p.detach().double()),
    "expanded": lambda p: setattr(p, "data", torch.ones(1, 4).expand(3, 4)),
}


CAPTURABLE = {"capturable": {"capturable": True}}
TRIES = [
    pytest.param(bad, path, manifold, before, id=f"{bad}-{path}-{manifold}-{before}")
    for bad in BAD
    for manifold in (PSI(), Sphere(), Euclidean(0), Stiefel())
    for path in ((PATHS | CAPTURABLE) if manifold != Stiefel() else ("reference", "default", "capturable"))
    for before in (0, 2)
    if before or bad != "of other precision"  # which is welcome before there is any state
]


@pytest.mark.parametrize(("bad", "path", "manifold", "before"), TRIES)
def test_nothing_moves_where_one_parameter_is_bad(bad, path, manifold, before):
    """Whatever is wrong with the last parameter is found before the first is written."""
    options = (PATHS | CAPTURABLE)[path]
    matrix = isinstance(manifold, Stiefel)
    params = [nn.Parameter(manifold.random_point(*((4, 3) if matrix else (3, 4)))) for _ in range(3)]
    optimizer = RiemannianAdam([{"params": params, "manifold": manifold}], lr=0.1, **options)
    for _ in range(before):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p in params:
        p.grad = torch.randn_like(p)
    BAD[bad](params[-1])
    nothing_moves(optimizer, params, (GradientError, StateError, GeometryError))


def nothing_moves(optimizer, params, errors, match=None):
    kept = [p.detach().clone() for p in params]
    state = {p: {k: copy.deepcopy(v) for k, v in its.items()} for p, its in optimizer.state.items()}
    with pytest.raises(errors, match=match):
        optimizer.step()
    assert all(torch.equal(p, value) for p, value in zip(params, kept, strict=True))
    assert optimizer.state.keys() == state.keys()
    for p, its in state.items():
        assert optimizer.state[p].keys() == its.keys()
        for key, value in its.items():
            now = optimizer.state[p][key]
            readable = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
            assert torch.equal(now, value) if readable else type(now) is type(value)


TAMPERED = {
    "text": lambda value: "0.5",
    "none": lambda value: None,
    "number": lambda value: 0.5,
    "integers": lambda value: value.long(),
    "complex": lambda value: value.to(torch.complex64),
    "another shape": lambda value: torch.ones(2, 2),
    "expanded": lambda value: torch.ones(()).expand(value.shape if value.numel() > 1 else (3, 4)),
    "sparse": lambda value: value.to_sparse() if value.ndim else value.reshape(1).to_sparse(),
    "meta": lambda value: value.to("meta").reshape(*value.shape, 1),
}


@pytest.mark.parametrize("path", PATHS | CAPTURABLE)
@pytest.mark.parametrize("how", TAMPERED)
def test_nothing_moves_where_state_was_tampered_with(how, path):
    """Any entry of the last parameter's; the message names the parameter, the entry and what it is now."""
    for make, options in ((RiemannianAdam, {}), (PSISGD, {"momentum": 0.9})):
        for entry in (
            ("exp_avg", "exp_avg_sq", "step", "radius") if make is RiemannianAdam else ("momentum_buffer", "radius")
        ):
            params = [nn.Parameter(torch.randn(3, 4)) for _ in range(2)]
            group = {"params": params, "manifold": PSI(), "names": ["a", "b"]}
            optimizer = make([group], lr=0.01, **options, **(PATHS | CAPTURABLE)[path])
            for _ in range(2):
                for p in params:
                    p.grad = torch.randn_like(p)
                optimizer.step()
            state = optimizer.state[params[-1]]
            state[entry] = TAMPERED[how](state[entry])
            nothing_moves(
                optimizer, params, StateError, rf"b is .*, its {entry} .*: the parameter or its state was changed"
            )


def test_state_whose_memory_was_replaced():
    """`state[...].data = …` keeps the tensor and frees what a kernel has the address of."""
    for entry in ("exp_avg", "exp_avg_sq", "radius"):
        ends = []
        for path in ("reference", "fused"):
            torch.manual_seed(0)
            w = nn.Parameter(torch.randn(3, 4))
            optimizer = RiemannianAdam([{"params": [w], "manifold": PSI()}], lr=0.01, **PATHS[path])
            for step in range(4):
                if step == 2:
                    value = optimizer.state[w][entry]
                    value.data = torch.full_like(value, 0.5)
                w.grad = torch.randn(3, 4)
                optimizer.step()
            ends.append(w.detach())
        assert torch.allclose(*ends, rtol=1e-5), entry


def test_nothing_unpickles():
    """No file of the package loads a pickle or a checkpoint that could run code."""
    found = {}
    pattern = re.compile(
        r"import pickle\b|\bpickle\.\w+|from pickle|import (?:dill|joblib|shelve|marshal)|allow_pickle=True|torch\.load\([^)]*\)|torch\.hub|"
        r"weights_only=False|(?<!json\.)\bloads\("
    )
    for path in (p for folder in ("manifolds", "optim", "psi") for p in sorted((ROOT / folder).rglob("*.py"))):
        for match in pattern.findall(path.read_text()):
            if not (match.startswith("torch.load(") and "weights_only=True" in match):
                found.setdefault(str(path.relative_to(ROOT)), set()).add(match)
    assert not found
