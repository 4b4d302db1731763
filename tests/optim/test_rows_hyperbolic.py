"""Row kernels of hyperbolic rows: Numba's against the reference, and the choice of the path; Triton's: triton_rows_hyperbolic.py."""

import hyperbolic_rows
import pytest
import torch
from hyperbolic_rows import CHOICES, MANIFOLDS, RULES
from own_rules import RMSprop, optimizer_of
from retract.errors import LawError, OptionError
from retract.manifolds import Lorentz, PoincareBall
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.testing.geodesics import row_kernels_have_its_formulas
from torch import nn

numba_hyperbolic = pytest.importorskip("retract.optim.kernels.numba_hyperbolic")
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
@pytest.mark.long
def test_every_choice_with_every_rule(choice, name):
    for turn in range(6):
        hyperbolic_rows.check(numba_hyperbolic, choice, name, CPU, turn)


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_every_choice(choice):
    turn = CHOICES.index(choice)
    hyperbolic_rows.check(numba_hyperbolic, choice, list(RULES)[(turn + 1) % len(RULES)], CPU, turn)


@pytest.mark.parametrize("check", ["check_still", "check_rows_apart", "check_boundary", "check_middle"])
def test_edges(check):
    getattr(hyperbolic_rows, check)(numba_hyperbolic, CPU)


def optimizer(
    manifold,
    make=lambda groups, options: RiemannianSGD(groups, **options),
    dtype=torch.float32,
    shape=(500, 5),
    **options,
):
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(manifold.random_point(*shape, generator=generator, dtype=dtype))
    w.grad = torch.randn(shape, generator=generator, dtype=dtype)
    return w, make([{"params": [w], "manifold": manifold, **options}], {"lr": 0.1})


@pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
def test_threads_change_no_bit(manifold):
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            w, steps = optimizer(manifold, momentum=0.9, shape=(30_000, 5))
            steps.step()
            steps.step()
            ends.append(w.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*ends)


def test_which_path():
    """In float32 with one coefficient for all points, or Adam; and where vectors stay tangent."""
    for manifold in (PoincareBall(), Lorentz()):
        for its, path in (
            (optimizer(manifold, momentum=0.9), "fused"),
            (optimizer(manifold, lambda groups, options: RiemannianAdam(groups, **options)), "fused"),
            (optimizer(manifold, dtype=torch.float64), "reference"),
            (optimizer(manifold, fused=False), "reference"),
            (optimizer(manifold, optimizer_of(RMSprop())), "reference"),
        ):
            assert its[1].paths()[0].path == path
        for words, options in (
            ("support float32, not float64", {"fused": True, "dtype": torch.float64}),
            ("the same coefficients for all points", {"fused": True, "make": optimizer_of(RMSprop())}),
            ("torch's functions for lists support PSI", {"foreach": True}),
        ):
            with pytest.raises(OptionError, match=words):
                optimizer(manifold, **options)[1].step()
    for manifold, path in ((PoincareBall(), "fused"), (Lorentz(), "reference")):
        assert optimizer(manifold, momentum=0.9, transport="none")[1].paths()[0].path == path


@pytest.mark.parametrize(("manifold", "wrong"), [(PoincareBall, "sheet"), (Lorentz, "ball")])
def test_the_law_rejects_another_kernel(manifold, wrong):
    row_kernels_have_its_formulas.check(manifold(), (4,), dtype=torch.float32, batch=(3,))
    other = type("Other", (manifold,), {"row_kernel": wrong})
    with pytest.raises(LawError, match="steps with motion='retract'"):
        row_kernels_have_its_formulas.check(other(), (4,), dtype=torch.float32, batch=(3,))


def test_a_subclass_says_for_itself():
    """It may have other maps."""
    assert type("Own", (PoincareBall,), {})().row_kernel is None
