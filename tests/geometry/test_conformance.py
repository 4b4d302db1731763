"""Every registered manifold runs every law of every abstract class that it inherits."""

import inspect

import pytest
import torch
from geometries import CASES
from laws import LAWS, Setting
from retract import manifolds

RUNS = [
    pytest.param(case, law, dtype, id=f"{case.id}-{law.__name__}-{str(dtype)[6:]}")
    for case in CASES
    for cls, law in LAWS
    for dtype in (torch.float64, torch.float32)
    if isinstance(case.manifold, cls) and law.__name__ not in case.waived
]
WAIVED = [
    pytest.param(case, law, id=f"{case.id}-{law.__name__}")
    for case in CASES
    for _, law in LAWS
    if law.__name__ in case.waived
]


@pytest.mark.parametrize(("case", "law", "dtype"), RUNS)
def test_law(case, law, dtype, generator, device):
    law(Setting(case, generator, device, dtype))


@pytest.mark.parametrize(("case", "law"), WAIVED)
def test_waived_laws_do_not_hold(case, law, generator, device):
    """A law is waived by name, in the registry, and only while it is broken."""
    with pytest.raises(Exception, match=r"does not hold for|Dynamo|inplace"):
        law(Setting(case, generator, device, thorough=law.__name__ == "derivatives_batch"))


def test_every_concrete_manifold_is_registered():
    registered = {type(case.manifold) for case in CASES}
    modules = [module for _, module in inspect.getmembers(manifolds, inspect.ismodule)]
    classes = {c for module in modules for _, c in inspect.getmembers(module, inspect.isclass)}
    concrete = {c for c in classes if issubclass(c, manifolds.Manifold) and not inspect.isabstract(c)}
    assert concrete <= registered, f"add to tests/support/geometries.py: {concrete - registered}"
