"""The checks of torch's own optimizer tests, on every input of its database for SGD and Adam.

They are written anew and named as in torch's test suite; each runs in flat space, where it compares with torch, and on
manifolds where it means something there. What is not run is listed with its reason, and the lists are exact.
"""

import copy
import inspect
import io
import itertools
import sys
from pathlib import Path

import pytest
import torch
from paths import PATHS
from retract.manifolds import PSI, Sphere
from retract.manifolds.errors import OptionError
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

database = pytest.importorskip("torch.testing._internal.common_optimizers")

OURS = {"SGD": RiemannianSGD, "Adam": RiemannianAdam}
INFOS = {info.name: info for info in database.optim_db}
GEOMETRIES = {"flat": None, "PSI": PSI(), "Sphere": Sphere()}
CURVED = [name for name, manifold in GEOMETRIES.items() if manifold is not None]

OTHER_OPTIMIZERS = dict.fromkeys(
    ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"),
    "another rule; only momentum and Adam are written for manifolds",
) | {
    "AdamW": "decoupled decay shrinks a weight, which on a manifold means nothing",
    "LBFGS": "evaluates its closure many times a step, along straight lines",
    "Muon": "orthogonalizes steps in flat space",
    "SparseAdam": "is for sparse gradients, which are refused",
}
SKIPPED_INPUTS = dict.fromkeys(
    (
        ("Adam", "amsgrad"),
        ("Adam", "capturable, amsgrad"),
        ("Adam", "Tensor lr with capturable and amsgrad"),
        ("Adam", "Tensor lr, Tensor betas, with capturable and amsgrad"),
    ),
    "amsgrad is no option: a maximum over time is not kept per point; a state_dict with it is refused",
)
SKIPPED_ERRORS = dict.fromkeys(
    (
        ("Adam", "lr as Tensor doesn't work with foreach & not capturable"),
        ("Adam", "betas must be either both floats or both Tensors"),
        ("Adam", r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True"),
    ),
    "no error here: tensors are read once per step on every path",
)
SKIPPED_PATHS = dict.fromkeys(
    ("foreach", "fused"), "a step that can be captured runs on the reference path; both raise"
)
SKIPPED_CHECKS = {
    "test_defaults_changed_to_foreach": "which of torch's paths is the default on a GPU; ours is execute._choose",
    "test_optim_infos_do_not_specify_global_cliquey_kwargs": "is about the database",
    "test_foreach_large_tensor": "more than 2^31 elements",
    "test_fused_large_tensor": "more than 2^31 elements",
    "test_peak_memory_foreach": "the memory of a GPU",
    "test_forloop_goes_right_direction_multigpu": "two GPUs",
    "test_param_group_with_lrscheduler_goes_right_direction_multigpu": "two GPUs",
    "test_cpu_load_state_dict": "moves from a CPU to a GPU",
    "test_grad_scaling_autocast_fused_optimizers": "torch's fused kernels unscale by themselves; here a GradScaler does",
    "test_fused_does_not_step_if_foundinf": "as above; test_accelerate.py runs a GradScaler",
    "test_fused_error_on_params_on_meta": "parameters on meta are welcome until the first step, for deferred init",
}
ELSEWHERE = {
    "test_complex": "updates/test_bad_input.py::test_empty_wrong_and_complex_parameters",
    "test_complex_2d": "updates/test_bad_input.py::test_empty_wrong_and_complex_parameters",
    "test_rosenbrock_sparse_with_lrsched": "updates/test_shell.py::test_gradients_are_checked_before_the_first_write",
    "test_tensor_lr": "updates/test_shell.py::test_one_element_tensor_rates_of_any_shape",
    "test_step_pre_hook": "updates/test_shell.py::test_hooks_and_named_parameters",
    "test_step_post_hook": "updates/test_shell.py::test_hooks_and_named_parameters",
    "test_differentiable": "updates/test_shell.py::test_differentiable_steps",
    "test_pickle": "updates/test_state.py::test_pickle_and_deepcopy_keep_the_geometry",
    "test_duplicate_params_across_param_groups": "updates/test_bad_input.py::test_parameters_given_twice",
}
MESSAGES = {
    "Tensor lr must be 1-element": "lr as a tensor needs one element",
    "beta1 should be between 0 and 1": r"betas=\(1.0, 0.0\): 1.0 is outside \[0, 1\)",
    "weight_decay should > 0": r"weight_decay=-1 is outside \[0, inf\)",
    "momentum should be between 0 and 1": r"momentum=-0.5 is outside \[0, 1\)",
}
"""Where our wording is another than torch's."""


def described(name, which):
    """(description, entry) of the database's inputs, those for a GPU included, or of its errors."""
    if which == "inputs":
        return [(entry.desc, entry) for entry in INFOS[name].optim_inputs_func("cuda")]
    return [
        (entry.optimizer_error_input.desc, entry) for entry in INFOS[name].optim_error_inputs_func("cpu", torch.float32)
    ]


def options_of(entry):
    """The keyword arguments of an input; amsgrad=False asks for nothing."""
    return {key: value for key, value in entry.kwargs.items() if (key, value) != ("amsgrad", False)}


INPUTS = [
    pytest.param(name, options_of(entry), id=f"{name}-{desc}".replace(" ", "_"))
    for name in OURS
    for desc, entry in described(name, "inputs")
    if (name, desc) not in SKIPPED_INPUTS
]
SPACES = pytest.mark.parametrize("space", GEOMETRIES)
each_input = pytest.mark.parametrize(("name", "options"), INPUTS)


class Problem:
    """A matrix and a vector: ‖w x + b‖², or with w's rows normalized where they live on a manifold."""

    def __init__(self, space, device, dtype=torch.float64, contiguous=True):
        torch.manual_seed(0)
        self.space, self.manifold = space, GEOMETRIES[space]
        w, b, self.x = torch.randn(10, 5), torch.randn(10), torch.randn(5).to(device, dtype)
        if self.manifold is not None:
            w = self.manifold.nearest(w)
        w, b = w.to(device, dtype), b.to(device, dtype)
        if not contiguous:
            w, b = torch.stack([w, w], -1)[..., 0], torch.stack([b, b], -1)[..., 0]
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)
        assert self.w.is_contiguous() == contiguous

    def groups(self, **options):
        """Groups of matrix and vector; weight decay goes to the vector where the matrix refuses it."""
        curved = {} if self.manifold is None else {"manifold": self.manifold, "weight_decay": 0.0}
        return [{"params": [self.w], **curved, **options}, {"params": [self.b]}]

    def loss(self):
        w = self.w if self.manifold is None else nn.functional.normalize(self.w, dim=1)
        return (w.mv(self.x) + self.b).square().sum()

    def run(self, optimizer, steps=10, schedulers=()):
        """Losses of `steps`, by a closure."""

        def closure():
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss.detach()

        losses = []
        for _ in range(steps):
            losses.append(optimizer.step(closure))
            for scheduler in schedulers:
                scheduler.step(*[losses[-1]] if isinstance(scheduler, ReduceLROnPlateau) else [])
        return torch.stack(losses)

    def weights(self):
        return [self.w.detach(), self.b.detach()]


def equal(mine, theirs):
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def close(mine, theirs, dtype=torch.float64):
    tolerance = 200 * torch.finfo(dtype).eps
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(mine, theirs, strict=True))


def paths_of(options):
    """The paths that go with the options of an input."""
    return [path for path in PATHS if path not in SKIPPED_PATHS] if options.get("capturable") else list(PATHS)


def fresh(options):
    """Options with tensors of their own, which schedulers write to, and torch's rate, for which the inputs are made."""
    return {"lr": 1e-3, **copy.deepcopy(options)}


def torchs(name, problem, options):
    """torch's own optimizer on the same; it has no capture on a CPU."""
    its = {key: value for key, value in fresh(options).items() if key != "capturable"}
    if "betas" in its:
        its["betas"] = tuple(float(beta) for beta in its["betas"])
    return INFOS[name].optim_cls(problem.groups(), foreach=False, **its)


def test_what_is_skipped_is_what_the_lists_say():
    assert set(OTHER_OPTIMIZERS) == set(INFOS) - set(OURS)
    refused, accepted = set(), set()
    for name, ours in OURS.items():
        for desc, entry in described(name, "inputs"):
            if not set(options_of(entry)) <= set(inspect.signature(ours).parameters):
                refused.add((name, desc))
        for desc, entry in described(name, "errors"):
            its = entry.optimizer_error_input
            if its.params is None:
                try:
                    ours([nn.Parameter(torch.randn(2, 3))], **its.kwargs)
                    accepted.add((name, desc))
                except entry.error_type:
                    pass
    assert refused == set(SKIPPED_INPUTS)
    assert accepted == set(SKIPPED_ERRORS)
    here = {name for name, value in vars(sys.modules[__name__]).items() if name.startswith("test_") and callable(value)}
    lists = [here, set(SKIPPED_CHECKS), set(ELSEWHERE)]
    assert all(not a & b for a, b in itertools.combinations(lists, 2))
    for place in ELSEWHERE.values():
        file, test = place.split("::")
        assert f"def {test}(" in (Path(__file__).parents[1] / file).read_text(), place
    # What the database itself marks for our two optimizers.
    marks = [mark for name in OURS for mark in INFOS[name].decorators]
    assert {mark.test_name for mark in marks if mark.cls_name == "TestOptimRenewed"} <= set.union(*lists)


@SPACES
@pytest.mark.parametrize("path", PATHS)
def test_paths_of_a_capture(path, space, device):
    if path in SKIPPED_PATHS:
        with pytest.raises(OptionError, match=f"{path}=True with capturable=True: such a step runs on the reference"):
            RiemannianSGD(Problem(space, device).groups(), capturable=True, **PATHS[path])
    else:
        RiemannianSGD(Problem(space, device).groups(), capturable=True, **PATHS[path])


@pytest.mark.parametrize("name", OURS)
def test_what_torch_supports_is_accounted_for(name):
    """Each implementation and capability that the database claims is an option here, or refused by an error."""
    info = INFOS[name]
    assert set(info.supported_impls) <= set(inspect.signature(OURS[name]).parameters)
    assert set(info.not_og_supported_flags) <= set(inspect.signature(OURS[name]).parameters)
    assert info.supports_param_groups
    assert info.supports_multiple_devices
    assert not info.step_requires_closure
    assert not info.only_supports_sparse_grads


@pytest.mark.parametrize("space", ["flat", "Sphere"])
@pytest.mark.parametrize("name", OURS)
def test_errors(name, space):
    for desc, entry in described(name, "errors"):
        if (name, desc) in SKIPPED_ERRORS:
            continue
        assert entry.error_on == database.OptimizerErrorEnum.CONSTRUCTION_ERROR
        its = entry.optimizer_error_input
        params = Problem(space, "cpu").groups() if its.params is None else its.params
        with pytest.raises(entry.error_type, match=MESSAGES.get(desc, entry.error_regex)):
            OURS[name](params, **its.kwargs)


@SPACES
def test_errors_of_torch_that_are_none_here(space, device):
    """They give what the same numbers give that are no tensors."""
    for desc, entry in described("Adam", "errors"):
        if ("Adam", desc) in SKIPPED_ERRORS:
            options = entry.optimizer_error_input.kwargs
            numbers = {key: float(value) if key == "lr" else value for key, value in options.items()}
            numbers["betas"] = tuple(float(beta) for beta in options.get("betas", (0.9, 0.999)))
            ends = []
            for its in (options, numbers):
                problem = Problem(space, device)
                problem.run(RiemannianAdam(problem.groups(), **its))
                ends.append(problem.weights())
            assert equal(*ends), desc


def test_options_that_want_a_gradient(device):
    """torch's Adam has none for numbers either, but for lr and betas; here lr alone."""
    beta = torch.tensor(0.9, requires_grad=True)
    with pytest.raises(OptionError, match="betas requires a gradient, but .* for lr alone"):
        RiemannianAdam(Problem("Sphere", device).groups(), betas=(beta, 0.99), differentiable=True)


@each_input
@SPACES
def test_forloop_goes_right_direction(name, options, space, device):
    """With every set of schedulers of the database, and with strides; in flat space as torch goes, bitwise on its own code."""
    for contiguous, makers in [(False, ()), (True, ()), *((True, makers) for makers in INFOS[name].scheduler_inputs)]:
        problem = Problem(space, device, contiguous=contiguous)
        optimizer = OURS[name](problem.groups(), foreach=False, **fresh(options))
        losses = problem.run(optimizer, schedulers=[make(optimizer) for make in makers])
        assert (losses[-1] > losses[0]) == options.get("maximize", False)
        if problem.manifold is not None:
            problem.manifold.check_point(problem.w.detach())
            continue
        twin = Problem(space, device, contiguous=contiguous)
        theirs = torchs(name, twin, options)
        twin.run(theirs, schedulers=[make(theirs) for make in makers])
        if contiguous and not options.get("capturable"):
            assert equal(problem.weights(), twin.weights())
        else:  # a capture computes the bias corrections in float32, as torch's does
            dtype = torch.float32 if options.get("capturable") else torch.float64
            assert close(problem.weights(), twin.weights(), dtype)


@each_input
@pytest.mark.parametrize("space", CURVED)
def test_weight_decay_is_refused_on_manifolds(name, options, space, device):
    groups = [
        {key: value for key, value in group.items() if key != "weight_decay"}
        for group in Problem(space, device).groups()
    ]
    if options.get("weight_decay"):
        with pytest.raises(OptionError, match="weight_decay=.* it does not shrink anything that matters"):
            OURS[name](groups, **fresh(options))
    else:
        OURS[name](groups, **fresh(options))


@each_input
@SPACES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_foreach_matches_forloop(name, options, space, dtype, device):
    agreeing(name, options, space, dtype, device, ("foreach", "default"))


@each_input
@SPACES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fused_matches_forloop(name, options, space, dtype, device):
    agreeing(name, options, space, dtype, device, ("fused",))


def agreeing(name, options, space, dtype, device, paths):
    """Weights and state on `paths` are those of the reference."""
    ends = []
    for path in ("reference", *(path for path in paths if path in paths_of(options))):
        problem = Problem(space, device, dtype)
        optimizer = OURS[name](problem.groups(), **PATHS[path], **fresh(options))
        problem.run(optimizer)
        state = [value for p in (problem.w, problem.b) for value in optimizer.state[p].values()]
        ends.append([*problem.weights(), *state])
    assert all(close(end, ends[0], dtype) for end in ends)


@each_input
def test_mixed_device_dtype(name, options, device):
    """One group of many dtypes, an empty parameter and one without gradient, each as if it were alone."""
    shapes = {torch.float32: (3, 4), torch.float64: (2,), torch.bfloat16: (5, 2), torch.float16: (4, 4)}

    def params():
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(shape).to(device, dtype)) for dtype, shape in shapes.items()] + [
            nn.Parameter(torch.empty(0, 3, device=device)),
            nn.Parameter(torch.ones(2, device=device)),
        ]

    def step(optimizer, its):
        for t in range(3):
            for i, p in enumerate(its[:-1]):
                generator = torch.Generator().manual_seed(10 * t + i)
                p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            optimizer()

    for path in paths_of(options):
        together, alone = params(), params()
        one = OURS[name](together, **PATHS[path], **fresh(options))
        step(one.step, together)
        many = [OURS[name]([p], **PATHS[path], **fresh(options)) for p in alone]
        step(lambda many=many: [each.step() for each in many], alone)
        assert equal(together, alone), path
        assert together[-1] not in one.state
        assert torch.equal(together[-1], torch.ones_like(together[-1]))


@each_input
@SPACES
def test_step_is_noop_when_params_have_no_grad(name, options, space, device):
    problem = Problem(space, device)
    before = [value.clone() for value in problem.weights()]
    optimizer = OURS[name](problem.groups(), **fresh(options))
    optimizer.step()
    assert equal(problem.weights(), before)
    assert not optimizer.state


@each_input
@SPACES
def test_step_is_noop_for_zero_grads(name, options, space, device):
    """Bitwise, but for decay in flat space."""
    for path in paths_of(options):
        problem = Problem(space, device)
        before = [value.clone() for value in problem.weights()]
        optimizer = OURS[name](problem.groups(), **PATHS[path], **{**fresh(options), "weight_decay": 0.0})
        for _ in range(3):
            problem.w.grad, problem.b.grad = torch.zeros_like(problem.w), torch.zeros_like(problem.b)
            optimizer.step()
        assert equal(problem.weights(), before), path


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
