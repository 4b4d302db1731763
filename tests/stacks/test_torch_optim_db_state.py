"""More checks of torch's own optimizer tests, see ``test_torch_optim_db.py``: state, loads, copies, groups, hooks."""

import copy
import io
import itertools

import pytest
import torch
from paths import PATHS
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_database import (
    GEOMETRIES,
    INFOS,
    OURS,
    SPACES,
    Problem,
    each_input,
    equal,
    fresh,
    paths_of,
    torchs,
)


@each_input
@SPACES
def test_non_empty_state(name, options, space, device):
    """Names and shapes of the state are torch's, with one number per point on a manifold."""
    problem, twin = Problem(space, device), Problem("flat", device)
    optimizer, theirs = OURS[name](problem.groups(), **fresh(options)), torchs(name, twin, options)
    problem.run(optimizer, 1)
    twin.run(theirs, 1)
    mine = optimizer.state[problem.w]
    expected = {key for key, value in theirs.state[twin.w].items() if value is not None}
    assert set(mine) - {"radius"} == expected
    assert ("radius" in mine) == (space == "PSI")
    for key in expected:
        per_point = key == "exp_avg_sq" and problem.manifold is not None
        assert mine[key].shape == ((10, 1) if per_point else theirs.state[twin.w][key].shape)
        assert not mine[key].requires_grad


@each_input
@SPACES
def test_state_dict_deterministic(name, options, space, device):
    """Loading leaves what it is given as it is, and two instances go on bitwise alike."""
    problem, twin = Problem(space, device), Problem(space, device)
    optimizer, other = (OURS[name](p.groups(), **fresh(options)) for p in (problem, twin))
    problem.run(optimizer)
    with torch.no_grad():
        twin.w.copy_(problem.w)
        twin.b.copy_(problem.b)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    assert repr(saved) == repr(kept)
    assert torch.equal(problem.run(optimizer), twin.run(other))
    assert equal(problem.weights(), twin.weights())
    assert repr(optimizer.state_dict()) == repr(other.state_dict())


@each_input
@SPACES
def test_save_load_equality_with_weights_only(name, options, space, device):
    problem = Problem(space, device)
    optimizer = OURS[name](problem.groups(), **fresh(options))
    problem.run(optimizer, 3)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert repr(loaded) == repr(optimizer.state_dict())
    twin = OURS[name](Problem(space, device).groups(), **fresh(options))
    twin.load_state_dict(loaded)
    assert repr(twin.state_dict()) == repr(loaded)


@each_input
@SPACES
def test_can_load_older_state_dict(name, options, space, device):
    """One from before a flag was there."""
    problem = Problem(space, device)
    optimizer = OURS[name](problem.groups(), **fresh(options))
    problem.run(optimizer, 3)
    for flag in INFOS[name].not_og_supported_flags:
        old = copy.deepcopy(optimizer.state_dict())
        for group in old["param_groups"]:
            del group[flag]
        optimizer.load_state_dict(old)
        assert all(flag in group for group in optimizer.param_groups)
        problem.run(optimizer, 1)


@each_input
@SPACES
def test_load_nontensor_step(name, options, space, device):
    """As torch kept the number of the step once."""
    problem, twin = Problem(space, device), Problem(space, device)
    optimizer, other = (OURS[name](p.groups(), **fresh(options)) for p in (problem, twin))
    problem.run(optimizer, 3)
    twin.run(other, 3)
    old = copy.deepcopy(other.state_dict())
    for state in old["state"].values():
        if "step" in state:
            state["step"] = state["step"].item()
    other.load_state_dict(old)
    assert torch.equal(problem.run(optimizer), twin.run(other))
    assert repr(optimizer.state_dict()) == repr(other.state_dict())


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_can_load_from_to_named_state_dict(name, space, device):
    """Parameters with and without names; the state is one."""
    for mine, its in itertools.product((True, False), repeat=2):
        ends = []
        problem, twin = Problem(space, device), Problem(space, device)
        for one, named in ((problem, mine), (twin, its)):
            groups = one.groups()
            for group, label in zip(groups, ("w", "b"), strict=True):
                group["params"] = [(label, p) for p in group["params"]] if named else group["params"]
            ends.append(OURS[name](groups, lr=0.01))
        problem.run(ends[0])
        saved = ends[0].state_dict()
        assert ("param_names" in saved["param_groups"][0]) == mine
        ends[1].load_state_dict(saved)
        twin.run(ends[1], 2)
        assert [group["manifold"] for group in ends[1].param_groups] == [g["manifold"] for g in ends[0].param_groups]


@each_input
@SPACES
def test_deepcopy_copies_all_public_attrs(name, options, space, device):
    problem = Problem(space, device)
    optimizer = OURS[name](problem.groups(), **fresh(options))
    problem.run(optimizer, 2)

    def public(one):
        return {key for key in vars(one) if not key.startswith("_")}

    assert public(copy.deepcopy(optimizer)) == public(optimizer)


@each_input
@SPACES
def test_optimizer_can_be_printed(name, options, space, device):
    optimizer = OURS[name](Problem(space, device).groups(), **fresh(options))
    text = repr(optimizer)
    assert text.startswith(f"Riemannian{name} (")
    assert f"manifold: {GEOMETRIES[space] or 'Euclidean(event_ndim=0)'!r}".replace("'", "") in text


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_param_groups_lr(name, space, device):
    """A group of rate 0 stays, bitwise; the other moves."""
    problem = Problem(space, device)
    before = [value.clone() for value in problem.weights()]
    losses = problem.run(OURS[name](problem.groups(lr=0.0), lr=0.01))
    assert torch.equal(problem.w, before[0])
    assert not torch.equal(problem.b, before[1])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OURS)
def test_param_groups_weight_decay(name, device):
    """In one group and not in the other, as torch."""
    ends = []
    for make in (OURS[name], INFOS[name].optim_cls):
        problem = Problem("flat", device)
        problem.run(make(problem.groups(weight_decay=0.5), lr=0.01, foreach=False))
        ends.append(problem.weights())
    assert equal(*ends)


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_param_group_with_lrscheduler_goes_right_direction(name, space, device):
    for makers in INFOS[name].scheduler_inputs:
        problem = Problem(space, device)
        optimizer = OURS[name](problem.groups(lr=0.01), lr=1e-3)
        losses = problem.run(optimizer, schedulers=[make(optimizer) for make in makers])
        assert losses[-1] < losses[0]


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_set_default_dtype_works_with_foreach(name, space, device):
    former, ends = torch.get_default_dtype(), []
    try:
        for default in (torch.float64, torch.float32):
            torch.set_default_dtype(default)
            problem = Problem(space, device, torch.float32)
            with torch.no_grad():  # the same start, whatever the numbers were drawn in
                generator = torch.Generator().manual_seed(1)
                for value in (problem.w, problem.b, problem.x):
                    value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float32))
                if problem.manifold is not None:
                    problem.w.copy_(problem.manifold.nearest(problem.w))
            for path in ("foreach", "reference"):
                problem.run(OURS[name](problem.groups(), **PATHS[path]))
            ends.append(problem.weights())
    finally:
        torch.set_default_dtype(former)
    assert equal(*ends)


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_step_all_hooks(name, space, device):
    """Global and local hooks in torch's order, and none after they were taken away."""
    problem, calls = Problem(space, device), []
    optimizer = OURS[name](problem.groups(), lr=0.01)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
    ]
    try:
        problem.run(optimizer, 1)
    finally:
        for handle in handles:
            handle.remove()
    expected = ["global pre", "pre", "post", "global post"]
    assert calls == expected
    problem.run(optimizer, 1)
    assert calls == expected


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_state_dict_pre_post_hook(name, space, device):
    problem, calls = Problem(space, device), []
    optimizer = OURS[name](problem.groups(), lr=0.01)
    optimizer.register_state_dict_pre_hook(lambda its: calls.append(its is optimizer))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "note": "mine"})
    saved = optimizer.state_dict()
    assert calls == [True]
    assert saved["note"] == "mine"
    optimizer.load_state_dict(saved)


@SPACES
@pytest.mark.parametrize("name", OURS)
def test_load_state_dict_pre_hook_and_prepend_hook(name, space, device):
    """Hooks may change what is loaded, the last of them first where it is prepended."""
    problem = Problem(space, device)
    optimizer = OURS[name](problem.groups(), lr=0.01)
    calls = []

    def rate(value):
        def hook(_, saved):
            calls.append(value)
            saved = copy.deepcopy(saved)
            for group in saved["param_groups"]:
                group["lr"] = value
            return saved

        return hook

    optimizer.register_load_state_dict_pre_hook(rate(0.2))
    optimizer.register_load_state_dict_pre_hook(rate(0.3))
    optimizer.register_load_state_dict_pre_hook(rate(0.1), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda its: calls.append(its.param_groups[0]["lr"]))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [0.1, 0.2, 0.3, 0.3]


@each_input
@SPACES
def test_a_step_leaves_no_graph(name, options, space, device):
    """Under no_grad, enable_grad and by default."""
    for mode in (torch.no_grad, torch.enable_grad):
        for path in paths_of(options):
            problem = Problem(space, device)
            optimizer = OURS[name](problem.groups(), **PATHS[path], **fresh(options))
            for _ in range(2):
                problem.w.grad, problem.b.grad = torch.ones_like(problem.w), torch.ones_like(problem.b)
                with mode():
                    optimizer.step()
            for p in (problem.w, problem.b):
                assert p.is_leaf
                assert p.requires_grad
                assert not any(torch.is_tensor(v) and v.requires_grad for v in optimizer.state[p].values())


@pytest.mark.parametrize("name", OURS)
def test_the_profiler_names_the_step(name, device):
    problem = Problem("Sphere", device)
    optimizer = OURS[name](problem.groups(), lr=0.01)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        problem.run(optimizer, 1)
    names = {event.name for event in profile.events()}
    assert {f"Optimizer.step#Riemannian{name}.step", f"Optimizer.zero_grad#Riemannian{name}.zero_grad"} <= names
