"""The examples of docs/examples: a plain loop, Lightning and Accelerate train alike, and resume without a trace."""

import contextlib
import io
import runpy
from functools import cache
from pathlib import Path

import pytest
import retract
import torch
from retract.errors import OptionError
from retract.manifolds import PSI, Sphere
from torch import nn
from torch.nn.utils import clip_grad_norm_

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NEEDS = {"plain_loop": "sklearn", "lightning_module": "pytorch_lightning", "accelerate_loop": "accelerate"}

pytestmark = [
    # Lightning 2.6.6 asks torch 2.13 for a leaf in the former way, and advises more workers for the loader.
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """By name: what an example defines, and what its `main` gives. Each runs once."""

    @cache
    def run(name):
        pytest.importorskip(NEEDS[name])
        its = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            results = its["main"](tmp_path_factory.mktemp(name))
        return its, results, said.getvalue()

    return run


def uninterrupted(name, its):
    """Network and losses of the run that `main` interrupts and resumes."""
    if name == "lightning_module":
        module, _ = its["fit"](its["EPOCHS"])
        return module.net, module.losses
    parts = its["build"](2) if name == "accelerate_loop" else its["build"]()
    losses = its["train"](*parts, epochs=its["EPOCHS"])
    return parts[1] if name == "accelerate_loop" else parts[0], losses


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_trains_and_resumes(name, example):
    its, (net, optimizer, losses), said = example(name)
    assert len(said.splitlines()) == 1
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    assert [group["manifold"] for group in optimizer.param_groups] == ["PSI()", "Sphere()", "Euclidean(event_ndim=0)"]
    twin, same = uninterrupted(name, its)
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NEEDS)
def test_weights_are_where_they_belong(name, example):
    """Rows on PSI keep their norms, those on the sphere stay at 1, and momentum is tangent."""
    _, (net, optimizer, _), _ = example(name)
    torch.manual_seed(0)
    start = nn.Linear(64, 32, bias=False).weight.norm(dim=1)
    rows, heads = net[0].weight.detach(), net[3].weight.detach()
    assert torch.allclose(rows.norm(dim=1), start.detach(), rtol=1e-5)
    Sphere().check_point(heads)
    for manifold, w in ((PSI(), net[0].weight), (Sphere(), net[3].weight)):
        manifold.check_tangent(w.detach(), optimizer.state[w]["momentum_buffer"])


def test_three_loops_are_one_trajectory(example, tmp_path):
    """Bit for bit, with the same batches; Accelerate without accumulation."""
    losses = example("plain_loop")[1][2]
    assert example("lightning_module")[1][2] == losses
    assert example("accelerate_loop")[0]["main"](tmp_path, micro_batches=1)[2] == losses


def test_none_of_it_is_torchs_sgd(example, monkeypatch):
    """The same loop with torch's optimizer starts alike, goes elsewhere and leaves the manifolds."""
    its, (_, _, losses), _ = example("plain_loop")
    net, _, _ = its["build"]()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=its["EPOCHS"])
    monkeypatch.setattr(
        retract.optim, "clip_riemannian_norm_", lambda _, max_norm: clip_grad_norm_(net.parameters(), max_norm)
    )
    others = its["train"](net, sgd, schedule, epochs=its["EPOCHS"])
    assert others[0] == losses[0]
    assert all(a != b for a, b in zip(others[1:], losses[1:], strict=True))
    assert float(Sphere().point_defect(net[3].weight.detach()).max()) > 0.1
    monkeypatch.undo()
    with pytest.raises(OptionError, match="SGD has no manifolds"):
        retract.optim.clip_riemannian_norm_(sgd, 1.0)
