"""A probe looks at every tensor and number that a model returns, and names what it cannot look into."""

import collections
import dataclasses
import functools
import threading
from types import SimpleNamespace

import pytest
import torch
from retract import psi
from retract.psi.probe import Probe
from retract.psi.trees import Leaves
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.nn.utils import prune
from torch.utils import _pytree


@dataclasses.dataclass
class Data:
    tensor: torch.Tensor


class Slots:
    __slots__ = ("empty", "tensor")

    def __init__(self, tensor):
        self.tensor = tensor


class Node:
    """Known to pytrees only: the tensor is in no attribute."""

    tensors: list = []  # noqa: RUF012

    def __init__(self, tensor):
        self.place = len(self.tensors)
        self.tensors.append(tensor)


_pytree.register_pytree_node(Node, lambda n: ([Node.tensors[n.place]], None), lambda items, _: Node(*items))


class Knot:
    """Holds itself."""

    def __init__(self, tensor):
        self.itself, self.list = self, [tensor]
        self.list.append(self.list)


def mixture(h):
    return MixtureSameFamily(Categorical(logits=h), Normal(h, 1.0))


KINDS = {
    "tuple": lambda h: (h, None),
    "dict": lambda h: {"a": [{"b": h}]},
    "ordered dict": lambda h: collections.OrderedDict(a=h),
    "mapping": lambda h: collections.UserDict(a=h),
    "deque": lambda h: collections.deque([h]),
    "set": lambda h: {h},
    "dataclass": Data,
    "namespace": lambda h: SimpleNamespace(a=SimpleNamespace(h=h)),
    "slots": Slots,
    "pytree": Node,
    "knot": Knot,
    "normal": lambda h: Normal(h, 1.0),
    "categorical": lambda h: Categorical(logits=h),
    "independent": lambda h: Independent(Normal(0.0, h.exp()), 1),
    "transformed": lambda h: TransformedDistribution(Normal(h, 1.0), [TanhTransform()]),
    "mixture": mixture,
    "array": lambda h: h.detach().numpy(),
    "number": lambda h: h.sum().item(),
    "NumPy's number": lambda h: h.detach().numpy().sum(),
    "flag": lambda h: bool(h.sum() > 0.1),
    "sparse": lambda h: h.to_sparse(),
    "nested": lambda h: torch.nested.as_nested_tensor([h[0], h[1]]),
    "complex": torch.fft.rfft,
    "masked": lambda h: h.masked_fill(torch.eye(16, 6).bool(), -torch.inf),
}


class ActorCritic(nn.Module):
    """The critic sees the trunk behind a norm; `kind` makes something of it as it is, or not."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.trunk, self.norm, self.critic = (
            kind,
            nn.Linear(4, 6, bias=False),
            nn.LayerNorm(6),
            nn.Linear(6, 1),
        )

    def forward(self, x):
        h = self.trunk(x)
        return self.critic(self.norm(h)), self.kind(h) if self.kind else None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_kind_count(kind):
    torch.manual_seed(0)
    model, x = ActorCritic(KINDS[kind]), torch.randn(16, 4)
    probe = Probe(model, (x,), {})
    base = probe.run(0)
    with torch.no_grad():
        probe.weights["trunk.weight"].mul_(-2 if kind == "flag" else 2)
    behind, *others = zip(base, probe.run(0), strict=True)
    if kind != "flag":
        assert torch.allclose(*behind, rtol=1e-3)
    assert any((a - b).norm() > 0.1 * b.norm() for a, b in others)
    assert probe.notes == []
    assert all(t.dtype == torch.float64 and not t.requires_grad and t.layout == torch.strided for t in base)


@pytest.mark.parametrize("kind", ["namespace", "normal", "pytree", "slots"])
def test_no_trunk_is_invariant_that_shows_in_a_distribution_or_an_object(kind):
    x = torch.randn(16, 4)
    assert psi.find(ActorCritic(KINDS[kind]), x)[0].granularity == "none"
    assert psi.find(ActorCritic(None), x)[0].granularity == "tensor"


OPAQUE = {
    "function": lambda h: lambda: h,
    "method": lambda h: Data(h).__eq__,
    "functools.partial": lambda h: functools.partial(torch.add, h),
    "generator": lambda h: (row for row in h),
    "_thread.lock": lambda h: threading.Lock(),
    "torch.nn.modules.linear.Identity": lambda h: nn.Identity(),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_what_cannot_be_looked_into_is_named(kind):
    probe = Probe(ActorCritic(lambda h: {"a": OPAQUE[kind](h)}), (torch.randn(16, 4),), {})
    assert len(probe.run(0)) == 1
    assert probe.notes == [f"outputs of type {kind} were not looked at"]

    class Only(ActorCritic):
        def forward(self, x):
            return super().forward(x)[1]

    with pytest.raises(psi.ProbeError, match=f"return logits or a loss; outputs of type {kind} were not looked at"):
        psi.find(Only(OPAQUE[kind]), torch.randn(16, 4))


class Router(nn.Module):
    """Leaves a loss somewhere on itself, as mixtures of experts do."""

    def __init__(self, leave, layer=None):
        super().__init__()
        self.leave, self.linear, self.norm = leave, layer or nn.Linear(4, 6, bias=False), nn.LayerNorm(6)
        self.losses, self.by_name, self.box, self.slots = [], {}, SimpleNamespace(loss=None), Slots(None)
        self.hidden = [nn.Identity()]
        self.register_buffer("kept", torch.zeros(()))

    def forward(self, x):
        h = self.linear(x)
        self.leave(self, h.square().mean())
        return self.norm(h)


LEFT = {
    "aux": lambda m, loss: setattr(m, "aux", loss),
    "losses": lambda m, loss: m.losses.append(loss),
    "by_name": lambda m, loss: m.by_name.update(aux=(loss,)),
    "box": lambda m, loss: setattr(m.box, "loss", loss),
    "slots": lambda m, loss: setattr(m.slots, "tensor", loss),
    "hidden": lambda m, loss: setattr(m.hidden[0], "aux", loss),
    "kept": lambda m, loss: setattr(m, "kept", 0.9 * m.kept + loss),
    "linear.aux": lambda m, loss: setattr(m.linear, "aux", loss),
    "aux, norm.aux": lambda m, loss: (setattr(m, "aux", loss), setattr(m.norm, "aux", 2 * loss)),
}


@pytest.mark.parametrize("names", LEFT)
def test_losses_that_are_left_in_attributes_are_named(names):
    x, told = (
        torch.randn(16, 4),
        "attributes set in the forward pass were not looked at; return them if a loss uses them",
    )
    for model in (Router(LEFT[names]), nn.Sequential(Router(LEFT[names]))):
        path = "0." if isinstance(model, nn.Sequential) else ""
        report = psi.find(model, x)
        assert report.notes == (f"{told}: {path}{names.replace(', ', f', {path}')}",)
        assert report[0].granularity == "tensor"
        assert f"Note: {told}" in str(report)

    class Only(Router):
        def forward(self, x):
            super().forward(x)

    with pytest.raises(psi.ProbeError, match=f"return logits or a loss; {told}: {names}"):
        psi.find(Only(LEFT[names]), x)


class DataSet(collections.abc.Sequence):
    """A data set: what it holds is made when asked for."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise AssertionError("was read")


NOT_LEFT = {
    "nothing": lambda m, loss: None,
    "a number": lambda m, loss: setattr(m, "aux", loss.item()),
    "detached": lambda m, loss: setattr(m, "aux", loss.detach()),
    "words": lambda m, loss: setattr(m, "aux", "loss"),
    "a data set": lambda m, loss: setattr(m, "data", DataSet()),
    "a circle": lambda m, loss: setattr(m.box, "itself", [m.box, m, m.leave]),
}


@pytest.mark.parametrize("kind", NOT_LEFT)
def test_attributes_that_are_no_part_of_what_is_trained(kind):
    model, x = Router(NOT_LEFT[kind]), torch.randn(16, 4)
    model.cache = model(x)  # from a call before, and not touched in a pass
    assert psi.find(model, x).notes == ()


def test_what_is_returned_as_well_was_looked_at():
    class Both(Router):
        def forward(self, x):
            y = super().forward(x)
            return y, {"aux": self.aux}

    report = psi.find(Both(LEFT["aux"]), torch.randn(16, 4))
    assert report.notes == ()
    assert report[0].granularity == "none"


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "computed",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.l1_unstructured(m, "weight", 2), nn.Sequential],
)
def test_weights_that_a_layer_computes_are_its_own(computed):
    layer = computed(nn.Linear(4, 6))
    assert psi.find(Router(NOT_LEFT["nothing"], layer), torch.randn(16, 4)).notes == ()


def test_what_can_hold_no_tensor_is_no_matter():
    leaves = Leaves(
        [None, "a", b"b", torch.float32, torch.device("cpu"), torch.Size([2]), int, torch, range(3), object]
    )
    assert not leaves.tensors
    assert not leaves.opaque


def test_masked_logits_and_values_that_are_not_numbers():
    model, x = ActorCritic(KINDS["masked"]), torch.randn(16, 4)
    probe = Probe(model, (x,), {})
    value, logits, signs = probe.run(0)
    assert torch.equal(signs, -torch.eye(16, 6, dtype=torch.float64))
    assert torch.isfinite(logits).all()
    assert torch.isfinite(value).all()
    assert torch.isfinite(probe.differentiate(0)[1]["trunk.weight"]).all()
    assert psi.find(model, x)[0].granularity == "none"
    with pytest.raises(psi.ProbeError, match=r"values that are not finite in probe 0 \(the inputs as given, float64\)"):
        psi.find(ActorCritic(lambda h: h / 0 * 0), x)
