"""Each pass of a probe starts from the model's own state and random numbers, and leaves no trace."""

import collections
import copy
import itertools
import random
import threading

import numpy as np
import pytest
import torch
from retract import psi
from retract.psi.probe import Probe
from snapshots import same, snapshot
from torch import nn


class Meter:
    """An object of no special kind, with something that cannot be copied."""

    def __init__(self):
        self.n, self.lock, self.history = 0, threading.Lock(), [torch.ones(2)]


class Stateful(nn.Module):
    """Depends on state of every kind, and changes it."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear, self.norm = kind, nn.Linear(4, 6, bias=False), nn.LayerNorm(6)
        self.torch, self.numpy, self.python = (
            torch.Generator().manual_seed(1),
            np.random.default_rng(1),
            random.Random(1),
        )
        self.queue, self.array, self.nested = (
            collections.deque([torch.ones(6)], maxlen=1),
            np.ones(1),
            {"a": {"n": [1]}},
        )
        self.bank, self.meter, self.frozen = [torch.ones(6)], Meter(), (torch.ones(6), threading.Lock())
        self.hidden = [nn.BatchNorm1d(6)]
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("small", torch.ones(6, dtype=torch.bfloat16))

    def factor(self, y):
        if self.kind == "torch generator":
            return torch.rand((), generator=self.torch)
        if self.kind == "numpy generator":
            return self.numpy.random()
        if self.kind == "python generator":
            return self.python.random()
        if self.kind == "global generators":
            return torch.rand(()) + random.random() + np.random.rand()
        if self.kind == "deque":
            self.queue.append(1 + self.queue[0])
            return self.queue[0]
        if self.kind == "array":
            self.array += 1
            return float(self.array[0])
        if self.kind == "nested dict":
            self.nested["a"]["n"].append(len(self.nested["a"]["n"]))
            return sum(self.nested["a"]["n"])
        if self.kind == "tensor in a list":
            result = self.bank[0].to(y)
            self.bank[0].add_(y.detach().mean(0).to(self.bank[0]))
            return result
        if self.kind == "tensor in a tuple with a lock":
            self.frozen[0].add_(1)
            return self.frozen[0].clone()
        if self.kind == "object with a lock":
            with self.meter.lock:
                self.meter.n += 1
                self.meter.history[0].add_(1)
            return self.meter.n + self.meter.history[0].sum()
        if self.kind == "module in a list":
            self.hidden[0](y)
            return self.hidden[0].running_mean.clone()
        if self.kind == "buffers":
            self.count, self.small = self.count + 1, self.small + 1
            return self.count + self.small
        self.made = getattr(self, "made", 0) + 1
        return self.made

    def forward(self, x):
        y = self.norm(self.linear(x))
        return y * self.factor(y)

    def state(self):
        hidden = [(k, v.tolist()) for k, v in self.hidden[0].state_dict().items()]
        values = (
            self.queue,
            self.array,
            self.nested,
            self.bank,
            self.meter.n,
            self.meter.history,
            self.frozen[0],
            hidden,
        )
        generators = self.torch.get_state().tolist(), self.numpy.bit_generator.state, self.python.getstate()
        return str((values, generators, sorted(vars(self)), [(k, v.tolist()) for k, v in self.named_buffers()]))


KINDS = """torch generator,numpy generator,python generator,global generators,deque,array,nested dict,tensor in a list,
tensor in a tuple with a lock,object with a lock,module in a list,buffers,an attribute made in the forward pass"""


@pytest.mark.parametrize("kind", [kind.strip() for kind in KINDS.split(",")])
def test_every_pass_starts_from_the_same_state_and_leaves_none(kind):
    model, x = Stateful(kind), torch.randn(8, 4)
    held = {key: id(value) for key, value in vars(model).items()}
    before, weights = model.state(), snapshot(model)
    probe = Probe(model, (x,), {})
    probe.differentiate(0)
    first, own = probe.run(0), probe.as_is()
    assert torch.equal(first[0], probe.run(0)[0])
    assert torch.equal(own[0], probe.as_is()[0])
    assert first[0].norm() > 0
    assert probe.passes == 5
    assert psi.find(model, x)[0].granularity == "tensor"
    assert model.state() == before
    assert same(weights, snapshot(model))
    assert held == {key: id(value) for key, value in vars(model).items()}
    locks = {"frozen (lock)", "meter.lock (lock)"}
    assert locks == set(probe.notes[0].removeprefix("cannot be copied and was used as it is: ").split(", "))


class Teacher(nn.Module):
    """MoCo, BYOL: a moving average of the weights, updated inside of the forward pass."""

    def __init__(self, way):
        super().__init__()
        self.way, self.online, self.norm = way, nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6)
        self.target, self.behind = copy.deepcopy(self.online).requires_grad_(False), nn.BatchNorm1d(6)
        self.predict, self.last = nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)

    def forward(self, x):
        with torch.no_grad():
            theirs, ours = self.target.weight, self.online.weight
            if self.way == "data":
                theirs.data = 0.9 * theirs.data + 0.1 * ours.data
            elif self.way == "in place":
                theirs.data.mul_(0.9).add_(ours.data, alpha=0.1)
            else:
                self.target.weight = nn.Parameter(0.9 * theirs + 0.1 * ours, requires_grad=False)
            aim = self.behind(self.target(x))
        return self.last(self.predict(self.norm(self.online(x)))) * aim


@pytest.mark.parametrize("way", ["data", "in place", "new parameter"])
def test_teachers_updated_inside_of_the_forward_pass(way):
    model, x = Teacher(way), torch.randn(32, 5)
    before = snapshot(model)
    probe = Probe(model, (x,), {})
    given = {name: w.detach().clone() for name, w in probe.weights.items()}
    first, own = probe.run(0), probe.as_is()
    assert torch.equal(first[0], probe.run(0)[0])
    assert torch.equal(own[0], probe.as_is()[0])
    assert all(torch.equal(w, given[name]) and w.requires_grad for name, w in probe.weights.items())
    found = {f.name: f.granularity for f in psi.find(model, x)}
    assert found["predict.weight"] == "row"
    assert same(before, snapshot(model))


def test_closures_hooks_and_methods_that_know_the_model():
    model, x, seen = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6)), torch.randn(3, 4), []
    plain, linear = model.forward, model[0]
    model.forward = lambda x: plain(x) * linear.weight.sum()
    model[1].activate = model[1].forward
    handle = model[0].register_forward_hook(lambda module, inputs, output: seen.append(module.weight.dtype))
    probe = Probe(model, (x,), {})
    _, gradients = probe.differentiate(0)
    assert all(g.any() for g in gradients.values())
    assert seen == [torch.float64]
    assert torch.equal(probe.as_is()[0], model(x).double())
    handle.remove()
    assert not model[0]._forward_hooks


def test_recurrent_layers_that_keep_their_weights_in_lists():
    model = nn.LSTM(4, 5, num_layers=2)
    probe = Probe(model, (torch.randn(3, 2, 4),), {})
    assert all(g.any() for g in probe.differentiate(0)[1].values())
    doubled = {"weight_ih_l1": 2 * model.weight_ih_l1.detach()}
    assert not torch.equal(probe.as_is()[0], probe.as_is(doubled)[0])


def test_the_model_as_it_is():
    """Its types, its eps, its mode, its random numbers; the given inputs."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).to(torch.bfloat16)
    x, before = torch.randn(9, 4, dtype=torch.bfloat16), snapshot(model)
    probe = Probe(model, (x,), {})
    (y,) = probe.as_is()
    assert y.dtype == torch.float64
    assert torch.equal(y, y.bfloat16().double())
    assert bool((y == 0).any())
    assert not torch.equal(y, probe.run(0)[0])
    weight = model[0].weight.detach()
    small = 2.0**-7  # at which the eps shows
    changed = {"0.weight": small * weight, "0.bias": small * model[0].bias.detach()}
    expected = nn.functional.batch_norm(
        small * nn.functional.linear(x, weight, model[0].bias), None, None, training=True
    )
    kept = y != 0
    assert torch.equal(probe.as_is(changed)[0][kept], (2 * expected).double()[kept])
    assert not torch.equal(probe.as_is(changed)[0], y)
    assert same(before, snapshot(model))
    assert torch.equal(changed["0.weight"], small * weight)


def test_what_cannot_be_copied_is_named():
    model, x = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6)), torch.randn(3, 4)
    model.numbers = (n for n in itertools.count())
    probe = Probe(model, (x,), {})
    probe.run(0)
    assert probe.notes == ["cannot be copied and was used as it is: numbers (generator)"]
    del model.numbers
    probe = Probe(model, (x,), {})
    probe.run(0)
    assert probe.notes == []


class Bank(nn.Module):
    """Writes to what its backward pass needs, which is refused where the two have one type."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.bank = nn.Linear(4, 6, bias=False), nn.LayerNorm(6), [torch.ones(6)]

    def forward(self, x):
        y = self.norm(self.linear(x))
        scaled = y * self.bank[0].to(y)
        self.bank[0].add_(y.detach().mean(0).to(self.bank[0]))
        return scaled


def test_state_that_is_overwritten_while_the_backward_pass_needs_it():
    model, x = Bank(), torch.randn(8, 4)
    probe, plain = Probe(model, (x,), {}), Probe(nn.Sequential(model.linear, model.norm), (x,), {})
    found, expected = probe.differentiate(0)[1].values(), plain.differentiate(0)[1].values()
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))
    assert torch.equal(model.bank[0], torch.ones(6))


def test_the_callers_modes():
    model, x = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6)), torch.randn(3, 4)
    expected = [(f.name, f.granularity, f.reason) for f in psi.find(model, x)]
    with torch.inference_mode():
        assert [(f.name, f.granularity, f.reason) for f in psi.find(model, x.clone())] == expected
        inner = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6))
        assert psi.find(inner, x)[0].granularity == "tensor"


def test_activations_kept_from_a_call_before():
    model = Stateful("none")
    model.cache = {"h": model(torch.randn(3, 4))}
    kept = model.cache["h"]
    assert psi.find(model, torch.randn(3, 4))[0].granularity == "tensor"
    assert model.cache["h"] is kept
    assert kept.grad_fn is not None


def test_inputs_that_need_gradients():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

        def forward(self, x):
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    x = torch.randn(3, 4, requires_grad=True)
    probe = Probe(Force(), (x,), {})
    assert probe.differentiate(1)[1]["energy.0.weight"].any()
    assert torch.equal(probe.as_is()[0], probe.model(x).detach().double())
    assert x.grad is None
