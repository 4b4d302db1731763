"""`recalibrate` averages over the calls of each layer, whatever the network does with it."""

import copy

import pytest
import torch
from retract import psi
from retract.errors import RetractError
from torch import nn
from torch.optim.swa_utils import update_bn

KINDS = {
    "batch": lambda: nn.BatchNorm1d(3),
    "cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "instance": lambda: nn.InstanceNorm1d(3, momentum=0.2, track_running_stats=True),
    "sync": lambda: nn.SyncBatchNorm(3),
}


class Uses(nn.Module):
    """A layer that is called as often per batch as the batch says, on parts of unequal length."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, *parts):
        return [self.norm(part) for part in parts]


def parts(*counts):
    """Batches of so many calls each, of different sizes, means and variances."""
    torch.manual_seed(0)
    return [
        tuple((2 + call) * torch.randn(4 + call, 3, 5 + batch) + 3 * batch - call for call in range(count))
        for batch, count in enumerate(counts)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2), (0, 1, 0, 3), (1, 5, 2)], ids=str)
def test_every_call_counts_alike(kind, counts):
    norm = KINDS[kind]()
    momentum = norm.momentum
    norm.running_mean.fill_(7.0)
    batches = parts(*counts)
    assert psi.recalibrate(Uses(norm), batches) == len(counts)
    calls = [call for batch in batches for call in batch]
    axes = 2 if kind == "instance" else (0, 2)
    means = torch.stack([call.mean(axes).reshape(-1, 3).mean(0) for call in calls])
    variances = torch.stack([call.var(axes).reshape(-1, 3).mean(0) for call in calls])
    assert torch.allclose(norm.running_mean, means.mean(0), rtol=1e-5, atol=1e-5)
    assert torch.allclose(norm.running_var, variances.mean(0), rtol=1e-5)
    assert norm.momentum == momentum
    assert norm.training
    assert not norm._forward_pre_hooks
    if kind != "instance":  # which does not count
        assert norm.num_batches_tracked == len(calls)


def test_as_torch_has_it():
    torch.manual_seed(0)
    mine = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=None)
    )
    theirs = copy.deepcopy(mine)
    batches = [2 + torch.randn(16, 4) for _ in range(5)]
    psi.recalibrate(mine, batches)
    update_bn(batches, theirs)
    for key, value in theirs.state_dict().items():
        assert torch.allclose(mine.state_dict()[key], value, rtol=1e-6, atol=1e-7), key


def test_a_cumulative_average_goes_on_where_recalibration_left_it():
    norm = nn.BatchNorm1d(3, momentum=None)
    for _ in range(50):
        norm(torch.randn(8, 3))
    x = torch.randn(3, 64, 3) + 4
    psi.recalibrate(norm, [x[0], x[1]])
    norm(x[2])
    assert torch.allclose(norm.running_mean, x.mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_puts_everything_back(kind):
    norm = KINDS[kind]()
    model = Uses(norm)
    before, momentum = copy.deepcopy(norm.state_dict()), norm.momentum
    with pytest.raises(AttributeError):
        psi.recalibrate(model, [*parts(2), ("no tensor",)])
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert norm.momentum == momentum
    assert norm.training
    assert not norm._forward_pre_hooks


def test_a_layer_that_is_never_called_keeps_what_it_has_and_is_named():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(3), "unused": nn.InstanceNorm1d(3, track_running_stats=True)})
    model.forward = lambda x: model["used"](x)
    model["unused"].running_mean.fill_(7.0)
    with pytest.warns(UserWarning, match="^unused: not called in 2 batches") as caught:
        psi.recalibrate(model, [torch.randn(8, 3) + 1, torch.randn(8, 3) + 1])
    assert caught[0].filename == __file__
    assert (model["unused"].running_mean == 7).all()
    assert model["unused"].momentum == 0.1
    assert float(model["used"].running_mean.mean()) > 0.5


def test_calls_on_no_samples_do_not_count():
    """torch leaves the statistics alone then: at the 0 and 1 of their reset, if it is the first call."""
    norm, x = nn.BatchNorm1d(3), torch.randn(3, 16, 3) + 5
    nothing = torch.empty(0, 3)
    psi.recalibrate(Uses(norm), [(nothing,), (x[0], nothing), (nothing, x[1])])
    assert torch.allclose(norm.running_mean, x[:2].mean((0, 1)), atol=1e-5)
    assert norm.num_batches_tracked == 2
    before = copy.deepcopy(norm.state_dict())
    with pytest.warns(UserWarning, match="norm: not called in 1 batches"):
        psi.recalibrate(Uses(norm), [(nothing,)])
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def spoiled(way):
    """A batch, or a network, in which numbers cease to be finite in front of the second layer; good batches; its name."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    good, bad, culprit = [torch.randn(8, 3) for _ in range(3)], torch.randn(8, 3), "2"
    if way in ("NaN", "infinity"):
        bad[4, 1], culprit = float("nan" if way == "NaN" else "inf"), "0"
    elif way == "in the network":
        bad = bad.repeat(2, 1)
        model[1].register_forward_hook(lambda _, inputs, y: y / (len(y) != len(bad)))
    elif way == "float16":
        model, good, bad = model.half(), [x.half() for x in good], bad.half()
        bad[0] = 3e4  # finite, but its variance is not
        culprit = "0"
    return model, good, bad, culprit


@pytest.mark.parametrize("way", ["NaN", "infinity", "in the network", "float16"])
@pytest.mark.parametrize("place", [0, 2])
def test_statistics_that_are_not_finite_are_not_kept(way, place):
    model, good, bad, culprit = spoiled(way)
    psi.recalibrate(model, good)
    before, momenta = copy.deepcopy(model.state_dict()), [model[i].momentum for i in (0, 2, 3)]
    model[2].eval()
    modes = [module.training for module in model.modules()]
    batches = [*good[:place], bad, *good[place:]]
    with pytest.raises(
        RetractError, match=rf"^{culprit}: after batch {place}, counted from 0, the running statistics of this layer"
    ):
        psi.recalibrate(model, batches)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [model[i].momentum for i in (0, 2, 3)] == momenta
    assert not any(module._forward_pre_hooks for module in model.modules())
    psi.recalibrate(model, good)


def test_the_model_itself_and_batches_that_fail_halfway():
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    with pytest.raises(RetractError, match="^the model itself: after batch 0"):
        psi.recalibrate(norm, [torch.full((2, 3, 4), torch.inf)])

    def batches():
        yield torch.randn(2, 3, 4)
        raise OSError("disk")

    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(OSError, match="disk"):
        psi.recalibrate(norm, batches())
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert norm.momentum == 0.1
