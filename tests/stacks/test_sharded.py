"""DDP and FSDP2 on two processes against one: the same trained weights."""

import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from processes import together
from retract import declare, param_groups, psi
from retract.errors import DeclarationError, OptionError
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD, clip_riemannian_norm_
from torch import nn

STEPS = 20


def network():
    """Every way in which points can lie in a shard; no BatchNorm, whose statistics are of each process' own batch."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "rows": nn.Linear(6, 5),  # 3 and 2 rows
            "one": nn.Linear(5, 1),  # 1 row and none
            "whole": nn.Linear(6, 5),
            "blocks": nn.Linear(6, 8, bias=False),  # blocks of 2: whole in each shard
            "torn": nn.Linear(6, 6, bias=False),  # blocks of 2: torn
            "columns": nn.Linear(6, 4, bias=False),
            "conv": nn.ConvTranspose1d(4, 3, 3),
            "frame": nn.Linear(3, 6, bias=False),
            "narrow": nn.Linear(6, 1),  # along axis 1 the weight is cut, and one process has all of the bias
            "flat": nn.Linear(6, 3),
        }
    ).double()


def loss_of(net, x):
    outputs = [
        net[key](x).tanh().square().sum() for key in ("rows", "whole", "blocks", "torn", "columns", "narrow", "flat")
    ]
    outputs += [net["one"](net["rows"](x)).tanh().sum(), net["conv"](x[:, :4].unsqueeze(-1)).tanh().sum()]
    return (sum(outputs) + net["frame"](x[:, :3]).tanh().sum()) / len(x)


class Net(nn.Module):
    """A network that returns its loss, since wrappers work on `forward`."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return loss_of(self.net, x)


CASES = {
    "rows": ("rows.weight", Rows(), ()),
    "joint": ("rows.weight", Rows(), ("bias",)),
    "one": ("one.weight", Rows(), ()),
    "whole": ("whole.weight", Rows.whole(), ()),
    "whole joint": ("whole.weight", Rows.whole(), ("bias",)),
    "narrow joint": ("narrow.weight", Rows.whole(), ("bias",)),
    "blocks": ("blocks.weight", Rows(blocks=4), ()),
    "torn": ("torn.weight", Rows(blocks=3), ()),
    "columns": ("columns.weight", Rows(dim=1), ()),
    "conv": ("conv.weight", Rows(dim=1), ("bias",)),
}
OPTIMIZERS = {
    "PSISGD": (PSI(), lambda p: PSISGD(p, lr=0.1)),
    "PSISGDM": (PSI(), lambda p: PSISGD(p, lr=0.1, momentum=0.9)),
    "PSISGDM free": (PSI(), lambda p: PSISGD(p, lr=0.02, momentum=0.9, radius="free", transport="parallel")),
    "sphere": (Sphere(), lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9, nesterov=True, max_point_norm=0.3)),
    "SGDG": (Grassmann(1), lambda p: SGDG(p, lr=0.1)),
    "SGDG alone": (Grassmann(1), lambda p: SGDG(p, lr=0.1, orthogonality=0.0)),
    "AdamG": (Grassmann(1), lambda p: AdamG(p, lr=0.05)),
    "Adam": (PSI(), lambda p: RiemannianAdam(p, lr=0.05, weight_decay=0.0)),
    "foreach": (PSI(), lambda p: PSISGD(p, lr=0.1, momentum=0.9, foreach=True)),
    "reference": (Sphere(), lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9, foreach=False)),
}


def declare_all(net, manifold, cases):
    for case in (case for case in cases if case != "frame"):
        name, rows, joined = CASES[case]
        declare(net, name, manifold, rows, joined)
    if "frame" in cases:
        declare(net, "frame.weight", Stiefel())


def batches():
    return torch.randn(STEPS, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_run(optimizer, cases):
    manifold, make = OPTIMIZERS[optimizer]
    net = network()
    declare_all(net, manifold, cases)
    its = make(param_groups(net))
    for x in batches():
        its.zero_grad()
        loss_of(net, x).backward()
        its.step()
    return net


def distributed(rank, kind, optimizer, cases):
    """The same on this process' half of every batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.debug import CommDebugMode

    manifold, make = OPTIMIZERS[optimizer]
    net = network()
    if kind != "fsdp, declared after":
        declare_all(net, manifold, cases)

    model = Net(net)
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        place = (
            (lambda p: Shard(1) if p.ndim > 1 and p.shape[1] % 2 == 0 else None) if kind == "fsdp, Shard(1)" else None
        )
        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2,)), shard_placement_fn=place)
        if kind == "fsdp, declared after":
            declare_all(net, manifold, cases)
    its = make(param_groups(net))
    counts = []
    for x in batches():
        its.zero_grad()
        wrapped(x[4 * rank : 4 * rank + 4]).backward()
        with CommDebugMode() if kind != "ddp" else nullcontext() as talk:
            its.step()
        counts.append(talk.get_total_counts() if talk is not None else 0)
    weights = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in net.named_parameters()}
    return {"weights": {name: p.detach().clone() for name, p in weights.items()}, "collectives": counts}


def run_all(rank, runs):
    return [distributed(rank, *run) for run in runs]


ROWS = ["rows", "one", "blocks"]
APART = [*ROWS, "whole", "torn", "columns", "conv"]
JOINT = ["joint", "whole joint", "narrow joint", "torn"]
FRAMED = ("PSISGDM", "Adam", "reference")  # the others need a parallel transport, which Stiefel has not
FEW = ("PSISGDM", "SGDG", "Adam", "reference")
RUNS = [("fsdp", optimizer, cases) for optimizer in OPTIMIZERS for cases in (APART, JOINT)]
RUNS += [("fsdp", optimizer, ["rows", "frame"]) for optimizer in FRAMED]
RUNS += [(kind, optimizer, APART) for kind in ("fsdp, declared after", "fsdp, Shard(1)", "ddp") for optimizer in FEW]
RUNS += [("fsdp, Shard(1)", optimizer, JOINT) for optimizer in FEW]
RUNS += [("fsdp", optimizer, ROWS) for optimizer in FEW]


@pytest.fixture(scope="module")
def results():
    return together(2, run_all, RUNS)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run[0]}-{run[1]}-{'+'.join(run[2])}")
def test_two_processes_train_as_one(run, results):
    here, there = (its[RUNS.index(run)] for its in results)
    expected = dict(plain_run(*run[1:]).named_parameters())
    for name, weight in here["weights"].items():
        assert torch.equal(weight, there["weights"][name])
        assert (weight - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max()


SUMMED, GATHERED = ("whole", "columns", "whole joint", "narrow joint"), ("torn", "conv")
ADDITIVE = ("PSISGD", "PSISGDM", "foreach")  # one exchange of sums; the others have dot products with the step


def test_whole_rows_are_not_exchanged_and_all_others_once_or_twice_per_group(results):
    for (kind, optimizer, cases), its in zip(RUNS, results[0], strict=True):
        if kind == "fsdp":
            groups = [{CASES[case][1] for case in cases if case in kind} for kind in (SUMMED, GATHERED)]
            count = len(groups[0]) * (1 if optimizer in ADDITIVE else 2) + len(groups[1]) + ("frame" in cases)
            if optimizer in ("SGDG", "AdamG"):  # the penalty
                count = len({CASES[case][1] for case in cases})
            assert its["collectives"] == [count] * STEPS, (optimizer, cases)


def network_and_optimizer(optimizer, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    manifold, make = OPTIMIZERS[optimizer]
    net = network()
    declare_all(net, manifold, APART)
    model = Net(net)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    return model, make(param_groups(net))


def steps(model, optimizer, data, rank, world):
    share = len(data[0]) // world
    for x in data:
        optimizer.zero_grad()
        model(x[share * rank : share * (rank + 1)]).backward()
        optimizer.step()


def save(rank, optimizers, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    for optimizer in optimizers:
        model, its = network_and_optimizer(optimizer, 2)
        steps(model, its, batches()[: STEPS // 2], rank, 2)
        weights, state = get_state_dict(model, its)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{optimizer}")
    return []


def resume(rank, world, optimizers, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    results = []
    for optimizer in optimizers:
        model, its = network_and_optimizer(optimizer, world)
        weights, state = get_state_dict(model, its)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{optimizer}")
        set_state_dict(model, its, model_state_dict=weights, optim_state_dict=state)
        steps(model, its, batches()[STEPS // 2 :], rank, world)
        results.append({name: p.full_tensor().detach() for name, p in model.net.named_parameters()})
    return results


def test_a_checkpoint_of_two_processes_goes_on_on_one_and_on_four(tmp_path):
    together(2, save, FEW, str(tmp_path))
    for world in (1, 4):
        for optimizer, weights in zip(FEW, together(world, resume, world, FEW, str(tmp_path))[0], strict=True):
            for name, p in plain_run(optimizer, APART).named_parameters():
                assert (weights[name] - p).abs().max() <= 1e-12 * p.abs().max(), (world, optimizer, name)


def other_layouts(rank):
    """On four processes: hybrid sharding, tensor parallelism, and what is refused; errors as text."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    weights, messages = {}, {}

    def record(name, net):
        weights[name] = {key: p.full_tensor().detach() for key, p in net.named_parameters()}

    def attempt(name, work):
        try:
            work()
        except (ValueError, RuntimeError) as error:
            messages[name] = f"{type(error).__name__}: {error}"

    net = network()
    declare_all(net, PSI(), APART)
    model = Net(net)
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")))
    optimizer = OPTIMIZERS["PSISGDM"][1](param_groups(net))
    steps(model, optimizer, batches(), rank, 4)
    record("hybrid", net)

    mesh = init_device_mesh("cpu", (4,))
    net = pair()
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = PSISGD(param_groups(net), lr=0.1, momentum=0.9)
    train(net, optimizer)
    record("tensor parallel", net)
    attempt("plain state", lambda: load_plain(optimizer, net))
    attempt("find", lambda: psi.find(net, batches()[0]))
    attempt("differentiable", lambda: PSISGD(param_groups(net), differentiable=True))

    net, grid = pair(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("shards", "columns"))
    parallelize_module(net, grid["columns"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=grid["shards"])
    attempt("two cuts", lambda: PSISGD(param_groups(net)))
    return {"weights": weights, "messages": messages}


def load_plain(optimizer, net):
    state = optimizer.state_dict()
    for its in state["state"].values():
        its["momentum_buffer"] = its["momentum_buffer"].full_tensor()
    optimizer.load_state_dict(state)
    net(batches()[0]).square().mean().backward()
    optimizer.step()


def pair():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    declare(net, "0.weight", PSI(), joined=("bias",))
    declare(net, "2.weight", PSI())
    return net


def train(net, optimizer):
    for x in batches():
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def test_hybrid_and_tensor_parallel_layouts():
    its = together(4, other_layouts)[0]
    net = pair()
    train(net, PSISGD(param_groups(net), lr=0.1, momentum=0.9))
    for kind, expected in (("hybrid", plain_run("PSISGDM", APART)), ("tensor parallel", net)):
        for name, p in expected.named_parameters():
            assert (its["weights"][kind][name] - p).abs().max() <= 1e-12 * p.abs().max(), (kind, name)
    expected = {
        "plain state": "StateError: .* is sharded, its momentum_buffer is not: load the state with set_optimizer_state_dict",
        "find": "ProbeError: 0.weight is sharded: .* Probe it before fully_shard",
        "differentiable": "OptionError: differentiable=True on 0.weight: steps of sharded parameters",
        "two cuts": "GeometryError: 0.weight has the placements .* not along several at once",
    }
    assert its["messages"].keys() == expected.keys()
    for name, message in expected.items():
        assert re.match(message, its["messages"][name]), its["messages"][name]


def older_wrappers(rank):
    """FSDP1 and ZeroRedundancyOptimizer: errors as text, and weights."""
    warnings.simplefilter("ignore")  # both are deprecated, or import what is
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def fsdp1(**options):
        return PSISGD(param_groups(FullyShardedDataParallel(pair(), device_id=torch.device("cpu"), **options)))

    def zero(groups):
        return ZeroRedundancyOptimizer(groups, optimizer_class=PSISGD, lr=0.1, momentum=0.9)

    messages = []
    for attempt in (lambda: fsdp1(use_orig_params=True), fsdp1, lambda: zero(param_groups(pair()))):
        with pytest.raises((DeclarationError, OptionError)) as caught:
            attempt()
        messages.append(f"{caught.type.__name__}: {caught.value}")
    net = pair()
    train(net, zero(apart(net)))
    return {"messages": messages, "weights": [p.detach() for p in net.parameters()]}


def apart(net):
    """Groups without names and without joint points."""
    biases = [net[0].bias, net[2].bias]  # declared as parts of joint points, so their group has to say otherwise
    return [
        {"params": [net[0].weight, net[2].weight], "manifold": PSI()},
        {"params": biases, "manifold": Euclidean(0)},
    ]


def test_fsdp1_is_refused_and_zero_takes_plain_groups_only():
    net = pair()
    train(net, PSISGD(apart(net), lr=0.1, momentum=0.9))
    for its in together(2, older_wrappers):
        original, flat, zero = its["messages"]
        assert re.search("0.weight was flattened by FSDP1", original)
        assert re.search("0.weight: Linear has no parameter 'weight' .* FSDP1 has replaced it", flat)
        assert re.search("OptionError: .* ZeroRedundancyOptimizer splits groups like that", zero)
        assert all(map(torch.equal, its["weights"], net.parameters()))


def clipping(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = network()
    declare_all(net, PSI(), APART)
    model = fully_shard(Net(net), mesh=init_device_mesh("cpu", (2,)))
    optimizer = PSISGD(param_groups(net))
    model(batches()[0][4 * rank : 4 * rank + 4]).backward()
    length = clip_riemannian_norm_(optimizer, 0.01)
    return {"length": length, "grads": [p.grad.full_tensor() for p in net.parameters()]}


def test_clipping_the_gradient_of_shards():
    net = network()
    declare_all(net, PSI(), APART)
    loss_of(net, batches()[0]).backward()
    optimizer = PSISGD(param_groups(net))
    length = clip_riemannian_norm_(optimizer, 0.01)
    for its in together(2, clipping):
        assert torch.allclose(its["length"], length, rtol=1e-12, atol=0)
        for grad, p in zip(its["grads"], net.parameters(), strict=True):
            assert torch.allclose(grad, p.grad, rtol=1e-10, atol=1e-15)
