"""Every registered manifold satisfies every law of every abstract class that it inherits, but for those that it declares unmet."""

import inspect

import pytest
import torch
from geometries import CASES
from retract import manifolds, testing
from retract.errors import GeometryError
from retract.testing.setting import LAWS

RUNS = [
    pytest.param(
        case,
        law,
        dtype,
        id=f"{case.id}-{law.name}-{str(dtype)[6:]}",
        marks=[pytest.mark.slow] if "compile" in law.name else [],
    )
    for case in CASES
    for law in testing.laws(case.manifold)
    for dtype in (torch.float64, torch.float32)
]
UNMET = [
    pytest.param(case, law, id=f"{case.id}-{law.name}")
    for case in CASES
    for law in LAWS
    if law.name in case.manifold.unmet_laws
]


@pytest.mark.parametrize(("case", "law", "dtype"), RUNS)
def test_law(case, law, dtype, seed, device):
    law.check(case.manifold, case.shape, dtype=dtype, seed=seed, device=device)


@pytest.mark.parametrize(("case", "law"), UNMET)
def test_unmet_laws_do_not_hold(case, law, device):
    """A manifold declares a law unmet by name, and only while it breaks it, at some points at least."""

    def check():
        for seed in range(50):
            law.check(case.manifold, case.shape, seed=seed, device=device, thorough=law.name == "derivatives_batch")

    with pytest.raises(testing.LawError, match=f"^{law.name} does not hold for "):
        check()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [(), (2, 3), (1,)], ids=str)
@pytest.mark.parametrize("case", CASES[:8], ids=lambda case: case.id)
def test_any_batch_shape(case, batch, seed, device):
    for law in testing.laws(case.manifold):
        if law.name not in ("vmap_and_compile_agree", "second_derivatives_equal_differences"):
            law.check(case.manifold, case.shape, batch=batch, seed=seed, device=device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.known], ids=lambda case: case.id)
def test_known_values(case, dtype, device):
    for method, arguments, expected in case.known:
        found = getattr(case.manifold, method)(*(torch.tensor(a, dtype=dtype, device=device) for a in arguments))
        assert torch.allclose(found, torch.tensor(expected, dtype=dtype, device=device), rtol=0, atol=1e-6), method


@pytest.mark.parametrize("case", [case for case in CASES if case.off is not None], ids=lambda case: case.id)
def test_the_row_that_is_no_point_is_named(case, device):
    off = torch.tensor(case.off, dtype=torch.float64, device=device)
    x = case.manifold.random_point(*off.shape, dtype=torch.float64, device=device)
    with pytest.raises(GeometryError, match=r"row 1 is off by .* \(tolerance"):
        case.manifold.check_point(torch.stack([x, off]))


def test_a_concrete_manifold_has_no_subclass():
    """Abstract or final. Grassmann(1) is the final class of lines as vectors."""
    for case in CASES:
        parents = type(case.manifold).__mro__[1:]
        concrete = [c for c in parents if issubclass(c, manifolds.Manifold) and not inspect.isabstract(c)]
        assert concrete == [], case.id
    assert manifolds.Grassmann(1) == manifolds.ProjectiveSpace()
    assert type(manifolds.Grassmann(1)) is manifolds.ProjectiveSpace


def test_every_concrete_manifold_is_registered():
    registered = {type(case.manifold) for case in CASES}
    modules = [module for _, module in inspect.getmembers(manifolds, inspect.ismodule)]
    classes = {c for module in modules for _, c in inspect.getmembers(module, inspect.isclass)}
    concrete = {c for c in classes if issubclass(c, manifolds.Manifold) and not inspect.isabstract(c)}
    assert concrete <= registered, f"add to tests/support/geometries.py: {concrete - registered}"
