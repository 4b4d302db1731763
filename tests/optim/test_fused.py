"""What surrounds the row kernels: threads, forks, caches, missing packages, memory."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from retract.errors import OptionError
from retract.manifolds import PSI, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD, kernels
from retract.optim.execution.dispatch import BACKENDS, kernel_for
from retract.optim.rules import Momentum
from torch import nn

numba = pytest.importorskip("numba")
numba_rows = pytest.importorskip("retract.optim.kernels.numba_rows")


def problem(seed=0, shapes=((40, 300), (7, 40000), (3, 5)), manifold=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    manifold = manifold or PSI()
    params = [
        nn.Parameter(manifold.nearest(torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype))
        for s in shapes
    ]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype) / p.shape[1] ** 0.5
    return params


def end(params, optimizer, steps=5):
    for _ in range(steps):
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in params])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("torchs", [True, False], ids=["torch's threads", "Python's"])
@pytest.mark.parametrize("make", [PSISGD, SGDG, AdamG])
def test_the_number_of_threads_changes_no_bit(make, torchs, threads, monkeypatch):
    monkeypatch.setattr(kernels.threads, "_forked", not torchs)
    ends = []
    for number in (1, 2, 5):
        threads(number)
        manifold = PSI() if make is PSISGD else Grassmann(1)
        params = problem(manifold=manifold)
        options = {"orthogonality": 0.0} if make is not PSISGD else {"momentum": 0.9}
        ends.append(end(params, make([{"params": params, "manifold": manifold}], fused=True, **options)))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("torchs", [True, False], ids=["torch's threads", "Python's"])
def test_two_python_threads_step_at_once(torchs, threads, monkeypatch):
    monkeypatch.setattr(kernels.threads, "_forked", not torchs)
    threads(2)
    expected, results = [], {}
    for seed in range(4):
        params = problem(seed)
        expected.append(
            end(params, PSISGD([{"params": params, "manifold": PSI()}], lr=0.01, momentum=0.9, fused=True), 40)
        )

    def train(seed):
        params = problem(seed)
        results[seed] = end(
            params, PSISGD([{"params": params, "manifold": PSI()}], lr=0.01, momentum=0.9, fused=True), 40
        )

    workers = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(4):
        assert torch.isfinite(expected[seed]).all()
        assert torch.equal(results[seed], expected[seed])


def test_a_loop_is_over_when_everybody_is_done():
    done = []

    def work():
        helping = threading.current_thread() is not threading.main_thread()
        both.wait(10)
        time.sleep(0.2 if helping else 0.0)
        done.append(helping)
        if helping:
            raise ArithmeticError("in a helper")

    both = threading.Barrier(2)
    with pytest.raises(ArithmeticError, match="in a helper"):
        kernels.threads.share_python(work, 2)
    assert done == [False, True]
    kernels.threads.share_python(lambda: done.append(True), 1)
    assert len(done) == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_step_after_a_fork():
    """The child of a process that has stepped with threads steps too, with threads of its own."""
    code = """
import os, sys, threading, torch
from retract.manifolds import PSI
from retract.optim import PSISGD
from retract.optim.kernels import threads
torch.set_num_threads(3)
w = torch.nn.Parameter(torch.randn(9, 40000))
w.grad = torch.randn_like(w)
optimizer = PSISGD([{"params": [w], "manifold": PSI()}], momentum=0.9, fused=True)
optimizer.step()
child = os.fork()
optimizer.step()
threads.share_python(threading.Barrier(3, timeout=20).wait, 3)
norm = [w[i, 7 * i].item() for i in range(9)]  # torch's own threads do not survive a fork
if child == 0:
    print(norm, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(norm)
print(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    child, parent, status = done.stdout.splitlines()
    assert child == parent
    assert status == "0"


def one_step(**options):
    w = nn.Parameter(torch.ones(3, 4))
    w.grad = torch.ones_like(w)
    PSISGD([{"params": [w], "manifold": PSI(), "names": ["w"]}], lr=0.01, **options).step()
    return float(w.detach().sum())


@pytest.mark.slow
def test_no_folder_for_the_cache(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(numba_rows, "_kernels", {})
    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.cfunc("void(i8)", cache=True)(numba_rows._ENTRIES[torch.float32])
    assert one_step(fused=True) == pytest.approx(one_step(foreach=False))


def nothing(address):
    pass


def test_a_folder_for_the_cache_that_is_full(tmp_path, monkeypatch):
    def save(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", save)
    monkeypatch.setattr(numba_rows, "_kernels", {})
    monkeypatch.setitem(numba_rows._ENTRIES, torch.float32, nothing)
    with pytest.raises(OSError, match="no space left"):
        numba.cfunc("void(i8)", cache=True)(nothing)
    assert one_step(fused=True) == 12.0


@pytest.mark.parametrize(
    ("package", "module", "reason"),
    [
        ("not_there", "..kernels.numba_rows", "not_there is not installed; install it with"),
        (
            "numba",
            "not_there",
            "numba cannot be imported .No module named 'not_there'.; fix that, or reinstall it with",
        ),
    ],
)
def test_without_the_package(package, module, reason, monkeypatch):
    """The default goes on; asking for it names the extra."""
    monkeypatch.setitem(BACKENDS, "cpu", (package, module, BACKENDS["cpu"][2]))
    assert one_step() == pytest.approx(one_step(foreach=False))
    remedy = "pip install '..fused.' in a checkout of retract. Or leave fused at None"
    with pytest.raises(OptionError, match=f"fused=True on w: {reason} {remedy}"):
        one_step(fused=True)


@pytest.mark.parametrize(
    ("options", "group", "message"),
    [
        (
            {"fused": True},
            {"manifold": Stiefel()},
            r"fused=True on w: there is no row kernel for Stiefel\(\).*leave fused",
        ),
        (
            {"foreach": True},
            {"manifold": Stiefel()},
            r"foreach=True on w: torch\'s functions for lists support .* not Stiefel\(\)",
        ),
        ({"fused": True, "foreach": True}, {}, "foreach=True and fused=True: a step takes one path"),
        ({"fused": True, "differentiable": True}, {}, "fused=True with differentiable=True: .* leave fused"),
        ({"foreach": True, "capturable": True}, {}, "foreach=True with capturable=True"),
    ],
    ids=str,
)
def test_paths_that_cannot_be_taken(options, group, message):
    w = nn.Parameter(torch.eye(4, 3))
    w.data[3, 0] = 1.0
    if group.get("manifold") == Stiefel():
        w.data = torch.eye(4, 3)
    with pytest.raises(OptionError, match=message):
        RiemannianSGD([{"params": [w], "names": ["w"], **group}], lr=0.1, **options)


def test_half_precision_has_no_row_kernel_here():
    w = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    group = {"params": [w], "manifold": PSI(), "names": ["w"]}
    with pytest.raises(
        OptionError, match=r"fused=True on w: row kernels for PSI\(\) on cpu support float32, float64, not bfloat16"
    ):
        RiemannianSGD([group], fused=True)
    later = nn.Parameter(torch.ones(3, 4))
    optimizer = RiemannianSGD([{**group, "params": [later]}], fused=True)
    later.data = later.data.bfloat16()
    later.grad = torch.ones_like(later)
    with pytest.raises(OptionError, match="not bfloat16"):
        optimizer.step()


@pytest.mark.parametrize("manifold", [Sphere(), Grassmann(1)], ids=repr)
@pytest.mark.parametrize("motion", ["retract", "exp"])
def test_gradients_along_the_points(manifold, motion):
    """Of such a gradient rounding alone is left, which Adam brings to the length of a step: it must be a step on the manifold."""
    for options in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        for shape in ((40, 3), (30, 7), (9, 40), (3, 5000)):
            w = nn.Parameter(manifold.random_point(*shape))
            w.grad = w.detach() * (1.0 + torch.rand(shape[0], 1))
            optimizer = RiemannianAdam([{"params": [w], "manifold": manifold}], lr=0.01, motion=motion, **options)
            for _ in range(3):
                optimizer.step()
                assert manifold.point_defect(w.detach()).max() < 1e-5, (options, shape)


def test_rows_that_are_empty_and_tensors_without_any():
    full, empty = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(0, 4))
    optimizer = PSISGD([{"params": [empty, full], "manifold": PSI()}], momentum=0.9, fused=True)
    for p in (full, empty):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert (full.detach() != 1).all()


def test_the_default_is_the_fastest_path_there_is():
    """By manifold, dtype and size, as `kernel_for` says."""

    def path(shape, manifold=None, dtype=torch.float32, **options):
        w = nn.Parameter(torch.nn.functional.normalize(torch.randn(shape), dim=1).to(dtype))
        w.grad = torch.ones_like(w)
        group = {"params": [w]} if manifold is None else {"params": [w], "manifold": manifold}
        optimizer = RiemannianSGD([group], lr=0.1, **options)
        optimizer.step()
        return optimizer.paths()[0].path

    assert path((4, 6), PSI()) == "fused"
    assert path((4, 6), PSI(), torch.bfloat16) == "foreach"
    assert path((4, 6), PSI(), foreach=False) == "reference"
    assert path((4, 6), PSI(), foreach=True) == "foreach"
    assert path((4, 6)) == "torch foreach"
    assert path((4, 6), momentum=0.9, momentum_form="velocity") == "reference"
    assert path((4, 6), Sphere(), capturable=True) == "reference"
    assert kernel_for(Stiefel(), torch.float32, torch.device("cpu"), Momentum()).startswith("there is no row kernel")


@pytest.mark.parametrize("rows", [Rows(), Rows.whole()], ids=repr)
def test_without_momentum_a_step_allocates_nothing(rows):
    """PSI-SGD: weights and one norm per row, which the first step makes."""
    w = nn.Parameter(torch.randn(64, 4096))
    w.grad = torch.randn_like(w)
    optimizer = PSISGD([{"params": [w], "manifold": PSI(), "rows": rows}], fused=True)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) == 0
    assert set(optimizer.state[w]) == {"radius"}
