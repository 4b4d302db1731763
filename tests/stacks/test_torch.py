"""What torch offers around an optimizer: functional calls, copies, hooks, checkpointing, resuming."""

import copy
import io
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from networks import batches, declare_all, normed_cnn, normed_mlp, train
from optimizers import OPTIMIZERS
from paths import PATHS
from processes import together
from retract import declare, declared, param_groups, project_
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.optim import RiemannianSGD
from torch import nn
from torch.utils.checkpoint import checkpoint

HOME = {"sgdg": Grassmann(1), "adamg": Grassmann(1), "sgd": Sphere()}


def build(name, device, **options):
    net = declare_all(normed_mlp(device=device, **options), HOME.get(name, PSI()))
    return net, OPTIMIZERS[name](param_groups(net))


def data(count, device, dtype=torch.float64):
    return list(batches(count, 16, 6, classes=4, dtype=dtype, device=device))


def everything(net, optimizer):
    """Copies of parameters, buffers and state."""
    states = [value for p in net.parameters() for _, value in sorted(optimizer.state[p].items())]
    return [tensor.detach().clone() for tensor in (*net.parameters(), *net.buffers(), *states)]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_functional_call(name, device):
    """Parameters handed in from outside, and gradients handed back to the optimizer: the run is the ordinary one."""
    (net, optimizer), (plain, its_optimizer) = build(name, device), build(name, device)
    for x, y in data(5, device):
        loose = {key: p.detach().requires_grad_() for key, p in net.named_parameters()}
        loss = nn.functional.cross_entropy(torch.func.functional_call(net, loose, (x,)), y)
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(loose.values())), strict=True):
            p.grad = grad
        optimizer.step()
    train(plain, its_optimizer, data(5, device))
    assert equal(everything(net, optimizer), everything(plain, its_optimizer))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_model_and_optimizer_copied_together(name, copied, device):
    """The copy of the optimizer steps the copy of the model, and goes on as the original does; neither knows the other."""
    net, optimizer = build(name, device)
    train(net, optimizer, data(4, device))
    twin, other = copied((net, optimizer))
    before = everything(net, optimizer)
    train(twin, other, data(8, device)[4:])
    assert equal(everything(net, optimizer), before)
    assert declared(twin) == declared(net)
    train(net, optimizer, data(8, device)[4:])
    assert equal(everything(net, optimizer), everything(twin, other))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_assigned(name, device):
    """Under `assign=True` parameters are new tensors, so the optimizer is built after, and its state goes on bitwise."""
    net, optimizer = build(name, device)
    train(net, optimizer, data(4, device))
    buffer = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], buffer)
    train(net, optimizer, data(8, device)[4:])

    buffer.seek(0)
    model_state, optimizer_state = torch.load(buffer, weights_only=True)
    with torch.device("meta"):
        twin = declare_all(normed_mlp(device="meta"), HOME.get(name, PSI()))
    twin.load_state_dict(model_state, strict=True, assign=True)
    other = OPTIMIZERS[name](param_groups(twin))
    other.load_state_dict(optimizer_state)
    train(twin, other, data(8, device)[4:])
    assert equal(everything(net, optimizer), everything(twin, other))


def test_from_meta_to_training(device):
    """Declared on the meta device, made, reset and put: points of every kind are on their manifold, and stay there."""
    with torch.device("meta"):
        net = nn.ModuleDict(
            {
                "rows": nn.Linear(6, 8),
                "norm": nn.BatchNorm1d(8),
                "lines": nn.Linear(8, 5),
                "frame": nn.Linear(5, 5, bias=False),
                "planes": nn.Linear(2, 5),
            }
        )
        declare(net, "rows.weight", PSI(), joined=("bias",))
        declare(net, "lines.weight", Grassmann(1))
        declare(net, "frame.weight", Stiefel())
        declare(net, "planes.weight", Grassmann(2))
        optimizer = RiemannianSGD(param_groups(net))
    assert all(p.is_meta for group in optimizer.param_groups for p in group["params"])
    net.to_empty(device=device)
    for module in net.values():
        module.reset_parameters()
    project_(net)
    optimizer = RiemannianSGD(param_groups(net), lr=0.1, momentum=0.9)
    for _ in range(5):
        x = net["norm"](net["rows"](torch.randn(16, 6, device=device))).relu()
        (net["frame"](net["lines"](x)).tanh() @ net["planes"].weight).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for key, declaration in declared(net).items():
        declaration.manifold.check_point(net.get_parameter(key).detach(), key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_in_backward(name, device):
    """One optimizer per parameter, stepped by `register_post_accumulate_grad_hook`: the run of one optimizer for all."""
    (net, _), (plain, its_optimizer) = build(name, device), build(name, device)
    optimizers = {}
    for group in param_groups(net):
        for p in group["params"]:
            alone = {"manifold": Euclidean(0), **group, "params": [p], "names": ["it"]}
            optimizers[p] = OPTIMIZERS[name]([alone])

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    for x, y in data(5, device):
        nn.functional.cross_entropy(net(x), y).backward()
    train(plain, its_optimizer, data(5, device))
    assert equal(list(net.parameters()), list(plain.parameters()))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_joint_points_in_backward(path, device):
    """They step when the last of their parts has its gradient, on every path."""
    ends = []
    for within in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)).to(device, torch.float64)
        declare(net, "0.weight", PSI(), rows=Rows.whole(), joined=("bias",))
        groups = param_groups(net)
        if within:
            for group in groups:
                its = RiemannianSGD([{**group, **PATHS[path]}], lr=0.1, momentum=0.9)

                def step(_, group=group, its=its):
                    if all(p.grad is not None for p in group["params"]):
                        its.step()
                        its.zero_grad()

                for p in group["params"]:
                    p.register_post_accumulate_grad_hook(step)
            for x, y in data(4, device):
                nn.functional.cross_entropy(net(x), y).backward()
        else:
            train(net, RiemannianSGD([{**g, **PATHS[path]} for g in groups], lr=0.1, momentum=0.9), data(4, device))
        ends.append([p.detach() for p in net.parameters()])
    assert equal(*ends)


def test_hooks_around_the_step(device):
    """A pre hook may change gradients, and sees the points as they were; a post hook sees them moved, on the manifold."""
    net, optimizer = build("sgd", device)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: [p.grad.zero_() for p in net[3].parameters()] and None)
    optimizer.register_step_pre_hook(lambda *_: seen.append(net[0].weight.detach().clone()))
    optimizer.register_step_post_hook(lambda *_: seen.append(net[0].weight.detach().clone()))
    still = net[3].weight.detach().clone()
    train(net, optimizer, data(1, device))
    before, after = seen
    assert not torch.equal(before, after)
    Sphere().check_point(after)
    assert torch.equal(net[3].weight, still)


def test_hooks_around_a_load(device):
    """Those before a load may adapt what is loaded; those after it see state as it stays, and have the last word."""
    net, optimizer = build("adam", device, dtype=torch.bfloat16)
    train(net, optimizer, data(2, device, torch.bfloat16))
    optimizer.register_state_dict_post_hook(lambda _, state: {"groups": state["param_groups"], "state": state["state"]})
    twin, other = build("adam", device, dtype=torch.bfloat16)
    with pytest.raises(KeyError, match="param_groups"):
        other.load_state_dict(optimizer.state_dict())
    weight, seen = twin[0].weight, []

    def adapt(its, state):
        return {"param_groups": state["groups"], "state": state["state"]}

    def look(its):
        seen.append(its.state[weight]["exp_avg_sq"].clone())
        its.state[weight]["exp_avg_sq"].zero_()

    other.register_load_state_dict_pre_hook(adapt)
    other.register_load_state_dict_post_hook(look)
    other.load_state_dict(optimizer.state_dict())
    assert equal(seen, [optimizer.state[net[0].weight]["exp_avg_sq"]])
    assert seen[0].dtype == torch.float32
    assert not other.state[weight]["exp_avg_sq"].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_gradients_are_those_of_the_whole_batch(name, device):
    """Four quarters against one batch; a norm that keeps to one example, since BatchNorm itself sees the quarters."""

    def run(parts):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 4)).to(device, torch.float64)
        declare(net, "0.weight", HOME.get(name, PSI()))
        optimizer = OPTIMIZERS[name](param_groups(net))
        for x, y in data(6, device):
            optimizer.zero_grad()
            for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(net(x_part), y_part) / parts).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.allclose(run(4), run(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_and_thawed(name, device):
    """A frozen parameter keeps every bit, its state too, and then goes on from there; the others never notice."""
    net, optimizer = build(name, device)
    train(net, optimizer, data(3, device))
    weight = net[0].weight
    kept = [weight.detach().clone(), *copy.deepcopy(list(optimizer.state[weight].values()))]
    weight.requires_grad_(False)
    moving = net[3].weight.detach().clone()
    train(net, optimizer, data(6, device)[3:])
    assert equal([weight.detach(), *optimizer.state[weight].values()], kept)
    assert not torch.equal(net[3].weight, moving)
    weight.requires_grad_(True)
    optimizer.zero_grad()
    ((x, y),) = data(1, device)
    nn.functional.cross_entropy(net(x), y).backward()
    alone = nn.Parameter(weight.detach().clone())
    alone.grad = weight.grad.clone()
    other = OPTIMIZERS[name]([{**param_groups(net)[0], "params": [alone], "names": ["alone"]}])
    other.state[alone].update(copy.deepcopy(optimizer.state[weight]))
    optimizer.step()
    other.step()
    assert torch.equal(weight, alone), "the state that was left is the state it goes on with"


def test_a_group_added_mid_run(device):
    """A layer that joins later gets state of its own, on its own manifold, and disturbs none of the others."""
    (net, optimizer), (plain, its_optimizer) = build("psi-sgdm", device), build("psi-sgdm", device)
    late = nn.Linear(4, 4, bias=False, dtype=torch.float64, device=device)
    declare(late, "weight", Stiefel())
    train(net, optimizer, data(3, device))
    optimizer.add_param_group({**param_groups(late)[0], "lr": 0.01})
    for x, y in data(6, device)[3:]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        late.weight.grad = torch.randn_like(late.weight)
        optimizer.step()
    train(plain, its_optimizer, data(6, device))
    assert equal(everything(net, optimizer), everything(plain, its_optimizer))
    Stiefel().check_point(late.weight.detach())
    assert optimizer.state[late.weight]["momentum_buffer"].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_checkpointing(name, device):
    """Without reentry; without BatchNorm's statistics, which see the batch twice."""
    ends = []
    for recompute in (False, True):
        net, optimizer = build(name, device)
        for module in net:
            if isinstance(module, nn.BatchNorm1d):
                module.track_running_stats = False
                module.running_mean = module.running_var = None
        for x, y in data(5, device):
            optimizer.zero_grad()
            hidden = checkpoint(net[:3], x, use_reentrant=False) if recompute else net[:3](x)
            nn.functional.cross_entropy(net[3:](hidden), y).backward()
            optimizer.step()
        ends.append([p.detach() for p in net.parameters()])
    assert equal(*ends)


RUNS = list(itertools.product(OPTIMIZERS, ("reference", "foreach", "fused")))


def noisy_run(name, path, file, steps, resume):
    """Some steps of a run with dropout and a schedule, from its start or from `file`; what they leave goes there."""
    net = nn.Sequential(*normed_cnn(eps=1e-5, dtype=torch.float32)[:6], nn.Dropout(0.3), nn.Flatten(), nn.Linear(24, 3))
    declare(net, "0.weight", HOME.get(name, PSI()))
    declare(net, "3.weight", HOME.get(name, PSI()), rows=Rows(blocks=2))
    optimizer = OPTIMIZERS[name]([{**group, **PATHS[path]} for group in param_groups(net)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    torch.manual_seed(3)
    if resume:
        *states, noise = torch.load(file, weights_only=True)
        for part, state in zip((net, optimizer, scheduler), states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(noise)
    losses = []
    for batch in list(batches(6, 16, 1, 6, 6, dtype=torch.float32))[steps]:
        losses.append(train(net, optimizer, [batch]))
        scheduler.step()
    torch.save([*(part.state_dict() for part in (net, optimizer, scheduler)), torch.get_rng_state()], file)
    return [torch.cat(losses), *everything(net, optimizer)]


def part_of_runs(rank, folder, steps, resume):
    return [noisy_run(*run, Path(folder) / "-".join(run), steps, resume) for run in RUNS]


def test_a_new_process_goes_on_bitwise(tmp_path):
    """Model, optimizer, scheduler and random numbers from a file, against the run that nothing interrupted; every part in
    a process of its own, with the same number of threads."""
    (whole,) = together(1, part_of_runs, str(tmp_path), slice(6), False)
    together(1, part_of_runs, str(tmp_path), slice(3), False)
    (resumed,) = together(1, part_of_runs, str(tmp_path), slice(3, 6), True)
    for run, (its_losses, *expected), (losses, *rest) in zip(RUNS, whole, resumed, strict=True):
        assert torch.equal(losses, its_losses[3:]), run
        assert equal(rest, expected), run
