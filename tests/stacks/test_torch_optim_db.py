"""The checks of torch's own optimizer tests, on every input of its database for SGD and Adam.

They are written anew and named as in torch's test suite; each runs in flat space, where it compares with torch, and on
manifolds where it means something there. What is not run is listed with its reason, inputs and paths in
``support/torch_database.py``, and the lists are exact.
"""

import itertools
import re
from pathlib import Path

import pytest
import torch
from paths import PATHS
from retract.errors import OptionError
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn
from torch_database import (
    CURVED,
    INFOS,
    OURS,
    SKIPPED_INPUTS,
    SKIPPED_PATHS,
    SPACES,
    Problem,
    close,
    database,
    described,
    each_input,
    equal,
    fresh,
    options_of,
    paths_of,
    torchs,
)

OTHER_OPTIMIZERS = dict.fromkeys(
    ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"),
    "another rule; only momentum and Adam are written for manifolds",
) | {
    "AdamW": "decoupled decay shrinks a weight, which on a manifold means nothing",
    "LBFGS": "evaluates its closure many times a step, along straight lines",
    "Muon": "orthogonalizes steps in flat space",
    "SparseAdam": "is for sparse gradients, which are refused",
}
SKIPPED_ERRORS = dict.fromkeys(
    (
        ("Adam", "lr as Tensor doesn't work with foreach & not capturable"),
        ("Adam", "betas must be either both floats or both Tensors"),
        ("Adam", r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True"),
    ),
    "no error here: tensors are read once per step on every path",
)
SKIPPED_CHECKS = {
    "test_defaults_changed_to_foreach": "which of torch's paths is the default on a GPU; ours is dispatch.choose",
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
    "test_complex": "optim/test_bad_input.py::test_empty_wrong_and_complex_parameters",
    "test_complex_2d": "optim/test_bad_input.py::test_empty_wrong_and_complex_parameters",
    "test_rosenbrock_sparse_with_lrsched": "optim/test_shell.py::test_gradients_are_checked_before_the_first_write",
    "test_tensor_lr": "optim/test_shell.py::test_one_element_tensor_rates_of_any_shape",
    "test_step_pre_hook": "optim/test_shell.py::test_hooks_and_named_parameters",
    "test_step_post_hook": "optim/test_shell.py::test_hooks_and_named_parameters",
    "test_differentiable": "optim/test_shell.py::test_differentiable_steps",
    "test_pickle": "optim/test_state.py::test_pickle_and_deepcopy_keep_the_geometry",
    "test_duplicate_params_across_param_groups": "optim/test_bad_input.py::test_parameters_given_twice",
}
MESSAGES = {
    "Tensor lr must be 1-element": "lr as a tensor needs one element",
    "beta1 should be between 0 and 1": r"betas=\(1.0, 0.0\): 1.0 is outside \[0, 1\)",
    "weight_decay should > 0": r"weight_decay=-1 is outside \[0, inf\)",
    "momentum should be between 0 and 1": r"momentum=-0.5 is outside \[0, 1\)",
}
"""Where our wording is another than torch's."""


def option_names(optimizer):
    return set(optimizer([nn.Parameter(torch.ones(1))]).defaults)


def test_what_is_skipped_is_what_the_lists_say():
    assert set(OTHER_OPTIMIZERS) == set(INFOS) - set(OURS)
    refused, accepted = set(), set()
    for name, ours in OURS.items():
        for desc, entry in described(name, "inputs"):
            if not set(options_of(entry)) <= option_names(ours):
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
    files = Path(__file__).parent.glob("test_torch_optim_db*.py")
    here = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
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
    assert set(info.supported_impls) <= option_names(OURS[name])
    assert set(info.not_og_supported_flags) <= option_names(OURS[name])
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
    with pytest.raises(OptionError, match="betas requires a gradient, but .* no option but lr"):
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
        with pytest.raises(OptionError, match="weight_decay=.* it does not regularize"):
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
