"""A probe computes in float64 whatever a model keeps in other types, sets every eps aside, and passes over what it cannot widen."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from retract import psi
from retract.psi.exact import Exact
from retract.psi.probe import Probe
from torch import nn

F = nn.functional
DOUBLE, SINGLE = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps


def outer(x, table=torch.eye(4) / 3):
    return x @ table


class Tables(nn.Module):
    """A matrix in float32 that is neither parameter nor buffer."""

    shared = torch.eye(4) / 3

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear, self.norm = kind, nn.Linear(4, 6, bias=False), nn.LayerNorm(6)
        self.plain, self.nested = torch.eye(4) / 3, {"a": [torch.eye(4) / 3]}
        self.array, self.object = np.eye(4, dtype=np.float32) / 3, SimpleNamespace(table=torch.eye(4) / 3)
        self.half = [nn.Parameter(torch.eye(4, dtype=torch.bfloat16) / 4)]
        self.lazy = None

    def forward(self, x):
        if self.lazy is None:
            self.lazy = torch.eye(4, dtype=torch.float32) / 3
        made = torch.zeros(4, 4).type(torch.FloatTensor)
        made[torch.arange(4), torch.arange(4)] = torch.full((4,), 1 / 3).type("torch.FloatTensor")
        table = {
            "attribute": lambda: self.plain,
            "nested": lambda: self.nested["a"][0],
            "object": lambda: self.object.table,
            "parameter in a list": lambda: self.half[0].to(x.dtype) * 4 / 3,
            "made at the first call": lambda: self.lazy,
            "made by type": lambda: made,
            "class": lambda: self.shared,
            "array": lambda: torch.from_numpy(self.array),
        }
        y = outer(x) if self.kind == "closure" else x @ table[self.kind]()
        return self.norm(self.linear(y))


WIDENED = ("attribute", "nested", "object", "parameter in a list", "made at the first call", "made by type")


@pytest.mark.parametrize("kind", [*WIDENED, "class", "closure", "array"])
def test_tensors_in_single_precision_that_are_neither_parameters_nor_buffers(kind):
    model, x = Tables(kind), torch.randn(16, 4)
    probe = Probe(model, (x,), {})
    (y,) = probe.run(0)
    # A third is rounded to single precision where it was before the pass.
    rounded = kind not in ("made at the first call", "made by type", "parameter in a list")
    third = torch.tensor(1 / 3, dtype=torch.float32 if rounded else torch.float64).double()
    w = {name: p.detach() for name, p in probe.weights.items()}
    expected = F.layer_norm(third * x.double() @ w["linear.weight"].T, (6,), w["norm.weight"], w["norm.bias"])
    assert torch.allclose(y, expected, rtol=0, atol=1e-13)
    finding = psi.find(model, x)[0]
    assert finding.granularity == "tensor"
    assert finding.radial_ratio < 1e-12
    assert probe.precision == DOUBLE


@dataclasses.dataclass
class Graph:
    x: torch.Tensor
    edges: torch.Tensor


class Shut:
    """Neither a container nor a plain object."""

    __slots__ = ("edges", "x")

    def __init__(self, x, edges):
        self.x, self.edges = x, edges


class Convolution(nn.Module):
    """Sums over edges, of inputs in an object."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.LayerNorm(6)

    def forward(self, graph, *, more):
        h = self.linear(graph.x) + self.linear(more["again"][0].x)
        return self.norm(torch.zeros_like(h).index_add_(0, graph.edges[1], h[graph.edges[0]]))


@pytest.mark.parametrize("kind", [Graph, Shut, SimpleNamespace])
def test_inputs_in_objects(kind):
    x, edges = torch.randn(5, 4), torch.randint(5, (2, 30))
    graph = kind(x=x, edges=edges)
    given = x.clone()
    model = Convolution()
    probe = Probe(model, (graph,), {"more": {"again": (graph,)}})
    results = [probe.run(number)[0] for number in (0, 1, 2)]
    assert not any(torch.allclose(results[0], other, rtol=1e-2) for other in results[1:])
    assert probe.precision == DOUBLE
    assert graph.x is x
    assert torch.equal(x, given)
    assert psi.find(model, (graph,), {"more": {"again": (graph,)}})[0].granularity == "tensor"


class Fourier(nn.Module):
    """A neural operator: complex weights, and a complex buffer."""

    def __init__(self):
        super().__init__()
        self.lift, self.norm = nn.Conv1d(2, 6, 1, bias=False), nn.BatchNorm1d(6)
        self.w = nn.Parameter(torch.zeros(6, 6, 4, dtype=torch.cfloat))
        self.register_buffer("phase", torch.exp(1j * torch.arange(4)))

    def forward(self, x):
        modes = torch.fft.rfft(self.norm(self.lift(x)))[..., :4]
        modes = torch.view_as_complex(torch.view_as_real(modes.cfloat()).float())
        return torch.fft.irfft(torch.einsum("bix,iox->box", modes * self.phase, self.w), n=x.shape[-1])


def test_complex_parameters():
    """They are widened and given noise, so that zeros hide nothing, and are not measured."""
    model, x = Fourier(), torch.randn(4, 2, 16)
    probe = Probe(model, (x,), {})
    assert probe.run(0)[0].norm() > 0.1
    assert probe.differentiate(0)[1]["lift.weight"].norm() > 0
    assert probe.as_is()[0].norm() == 0
    assert probe.precision == DOUBLE
    assert probe.passed_over == {"w": "torch.complex64 is not a real floating-point type"}
    base = probe.run(0, eps=False)[0]
    with torch.no_grad():
        probe.weights["lift.weight"].mul_(32)
    assert torch.allclose(probe.run(0, eps=False)[0], base, rtol=1e-12)
    assert "w" in psi.find(model, x).to_dict()


def test_operations_without_float64():
    """A mixture of experts; the rest stays in float64, and gradients pass."""
    offsets = torch.tensor([3, 8], dtype=torch.int32)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm = nn.Linear(16, 16, bias=False), nn.LayerNorm(16)
            self.w, self.out = nn.Parameter(torch.randn(2, 16, 32) / 4), nn.Linear(32, 8)

        def forward(self, x):
            return self.out(torch._grouped_mm(self.norm(self.up(x)), self.w, offs=offsets))

    class ByHand(Experts):
        def forward(self, x):
            h = self.norm(self.up(x))
            return self.out(torch.cat([h[:3] @ self.w[0], h[3:] @ self.w[1]]))

    model, reference, x = Experts(), ByHand(), torch.randn(8, 16)
    reference.load_state_dict(model.state_dict())
    probe, exact = Probe(model, (x,), {}), Probe(reference, (x,), {})
    outputs, gradients = probe.differentiate(0)
    expected, wide = exact.differentiate(0)
    assert 1e-9 < (outputs[0] - expected[0]).abs().max() < 1e-5
    assert all(torch.allclose(g, wide[name], rtol=1e-4, atol=1e-5) for name, g in gradients.items())
    assert gradients["w"].any()
    assert (probe.precision, exact.precision) == (SINGLE, DOUBLE)
    assert probe.notes == ["there is no torch.float64 for all operations; computed _grouped_mm in torch.float32"]
    assert exact.notes == []


class Kernel(torch.autograd.Function):
    """A kernel that no mode sees."""

    @staticmethod
    def forward(ctx, x, dtypes):
        if x.dtype not in dtypes:
            raise RuntimeError(f"not implemented for {x.dtype}")
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad, None


class Custom(nn.Module):
    def __init__(self, *dtypes):
        super().__init__()
        self.linear, self.norm, self.dtypes = nn.Linear(4, 6, bias=False), nn.LayerNorm(6), dtypes

    def forward(self, x):
        return Kernel.apply(self.norm(self.linear(x)), self.dtypes)


def test_models_that_refuse_float64_as_a_whole():
    probe = Probe(Custom(torch.float32), (torch.randn(8, 4),), {})
    _, gradients = probe.differentiate(0)
    assert gradients["linear.weight"].dtype == probe.weights["linear.weight"].dtype == torch.float32
    assert probe.precision == SINGLE
    assert probe.notes == ["the model does not run in torch.float64; probed in torch.float32"]
    assert (probe.run(0, eps=False)[0] - probe.as_is()[0]).norm() > 0
    with pytest.raises(
        psi.ProbeError, match=r"failed in probe 0 \(.*, float64\): RuntimeError: not implemented for torch.float64"
    ):
        psi.find(Custom(torch.int8), torch.randn(8, 4))
    with pytest.raises(psi.ProbeError, match="failed as it is: RuntimeError: not implemented for torch.float32"):
        Probe(Custom(torch.int8), (torch.randn(8, 4),), {}).as_is()


class Odd(nn.Module):
    """Parameters that are not measured, beside one that is."""

    def __init__(self):
        super().__init__()
        self.weight, self.none = nn.Parameter(torch.randn(6, 4)), None
        self.zero = nn.Parameter(torch.ones(6, dtype=torch.int32), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 6))
        self.packed = nn.Parameter(torch.ones(6).to(torch.float8_e4m3fn), requires_grad=False)
        self.mask = nn.Parameter(torch.full((6, 6), -torch.inf).triu(1), requires_grad=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        h = (F.linear(x, self.weight) + self.zero - self.packed.to(x.dtype) + self.empty.sum()) @ self.mask.exp()
        assert self.packed.dtype == torch.float8_e4m3fn
        return F.layer_norm(h, (6,))


def test_parameters_that_are_passed_over():
    probe = Probe(Odd(), (torch.randn(8, 4),), {})
    assert list(probe.weights) == ["weight"]
    assert probe.passed_over == {
        "zero": "torch.int32 is not a real floating-point type",
        "empty": "it has no values",
        "packed": "torch.float8_e4m3fn is a type to store, not to compute in",
        "mask": "it has entries that are not finite",
    }
    assert probe.differentiate(0)[1]["weight"].any()
    assert torch.isfinite(probe.as_is()[0]).all()


def test_scripted_parts():
    """They run in float64 with noise on their weights, which are not measured."""
    torch.manual_seed(0)
    head = torch.jit.script(nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)))
    model, x = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), head), torch.randn(8, 4)
    nn.init.zeros_(head[0].bias)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    probe = Probe(model, (x,), {})
    assert set(probe.weights) == {"0.weight", "1.weight", "1.bias"}
    assert set(probe.passed_over.values()) == {"it is in a scripted part and cannot be replaced"}
    assert torch.equal(probe.run(0)[0], probe.run(0)[0])
    assert probe.differentiate(0)[1]["0.weight"].any()
    assert probe.precision == DOUBLE
    assert probe.notes == ["scripted parts keep their eps: 2"]
    assert torch.equal(probe.as_is()[0], model.train()(x).detach().double())
    model.load_state_dict(before)
    assert psi.find(model, x)[0].granularity == "tensor"
    assert all(torch.equal(t, before[name]) and t.dtype == before[name].dtype for name, t in model.state_dict().items())


def test_sparse_gradients():
    gradients = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 6, sparse=sparse), nn.LayerNorm(6))
        gradients.append(Probe(model, (torch.arange(7).repeat(2, 1),), {}).differentiate(0)[1]["0.weight"])
    assert torch.equal(*gradients)
    assert not gradients[1][7:].any()


def test_half_precision_where_the_processor_has_no_kernel():
    """A model in float16 runs as it is, operation by operation in float32 where it must."""

    class Inverse(nn.Linear):
        def forward(self, x):
            return torch.linalg.inv(super().forward(x))

    model, x = Inverse(4, 4).half(), torch.randn(4, 4).half()
    y = F.linear(x, model.weight, model.bias)
    with pytest.raises(RuntimeError, match="Half"):
        torch.linalg.inv(y)
    assert torch.equal(Probe(model, (x,), {}).as_is()[0], torch.linalg.inv(y.float()).half().detach().double())


def rms(x, eps=1e-5):
    return x.square().mean(-1, keepdim=True).add(eps).sqrt()


def filled(x, inplace):
    r = rms(x, 0.0)
    if inplace == "index":
        r[r < 1e-5] = 1e-5
        return x / r
    return x / (r.masked_fill_(r < 1e-5, 1e-5) if inplace else r.masked_fill(r < 1e-5, 1e-5))


EPS = torch.tensor(1e-5)
NORMS = {
    "rms_norm without eps": lambda x: F.rms_norm(x, (8,)),
    "torch.rms_norm without eps": lambda x: torch.rms_norm(x, (8,)),
    "rms_norm with eps": lambda x: F.rms_norm(x, (8,), eps=1e-3),
    "RMSNorm module": nn.RMSNorm(8).double().requires_grad_(False),
    "layer_norm by default": lambda x: torch.layer_norm(x, (8,)),
    "layer_norm by position": lambda x: torch.layer_norm(x, (8,), None, None, 1e-3),
    "group_norm by default": lambda x: torch.group_norm(x, 1),
    "an operator of aten": lambda x: torch.ops.aten.native_layer_norm(x, [8], None, None, 1e-5)[0],
    "cosine by default": lambda x: torch.cosine_similarity(x, x.roll(1, -1)),
    "normalize": lambda x: F.normalize(x),
    "number": lambda x: x / rms(x),
    "tensor": lambda x: x / rms(x, EPS),
    "tensor of one entry": lambda x: x / rms(x, EPS.view(1, 1)),
    "tensor of many": lambda x: x / rms(x, torch.full((x.shape[0], 1), 1e-5)),
    "NumPy's number": lambda x: x / rms(x, np.float32(1e-5)),
    "precision of the type": lambda x: x / (rms(x, 0.0) + torch.finfo(torch.float32).eps),
    "added from the left": lambda x: x / (1e-5 + rms(x, 0.0)),
    "clamp": lambda x: x / rms(x, 0.0).clamp(min=1e-5),
    "clamp by a tensor": lambda x: x / rms(x, 0.0).clamp(min=EPS),
    "maximum": lambda x: x / torch.maximum(rms(x, 0.0), EPS),
    "max": lambda x: x / torch.max(rms(x, 0.0), EPS),
    "where": lambda x: x / torch.where(rms(x, 0.0) > 1e-5, rms(x, 0.0), 1e-5),
    "where the other way": lambda x: x / torch.where(rms(x, 0.0) <= EPS, EPS, rms(x, 0.0)),
    "where as a method": lambda x: x / rms(x, 0.0).where(rms(x, 0.0) > 1e-5, EPS),
    "masked_fill": lambda x: filled(x, False),
    "masked_fill in place": lambda x: filled(x, True),
    "index": lambda x: filled(x, "index"),
}


@pytest.mark.parametrize("kind", NORMS)
def test_eps_in_all_its_spellings(kind):
    """Set aside, it does not show at tiny activations; otherwise it does."""
    norm, x, gaps = NORMS[kind], torch.randn(4, 8, dtype=torch.float64), {}
    scale = {"cosine by default": 1e-9, "normalize": 1e-13}.get(kind, 1e-7)
    for eps in (False, True):
        with Exact(torch.float64, [], eps=eps, implicit=SINGLE):
            small, unit = norm(scale * x), norm(x)
        gaps[eps] = float((small - unit).norm() / unit.norm())
    assert gaps[False] < 1e-7
    assert gaps[True] > 1e-3


def test_what_is_no_eps():
    """Small constants that mark masked places, and small data, stay."""
    x, mask = torch.rand(4, 8, dtype=torch.float64) + 1, torch.eye(4, 8).bool()
    data = torch.linspace(1e-6, 1e-3, 8, dtype=torch.float64)
    learned = torch.tensor(1e-5, dtype=torch.float64, requires_grad=True)
    with Exact(torch.float64, [], eps=False, implicit=SINGLE):
        for filled in (x.masked_fill(mask, 1e-5), torch.where(mask, 1e-5, x), x.clone().masked_fill_(mask, 1e-5)):
            assert (filled[mask] == 1e-5).all()
        assert torch.equal(0.0 * x[0] + data, data)
        assert (0.0 * x + learned).min() == 1e-5
        assert (0.0 * x + 2e-3).min() == 2e-3


def test_norms_without_an_eps_have_that_of_the_models_type():
    x = 1e-6 * torch.randn(16, 4)
    for dtype, eps in ((torch.float32, SINGLE), (torch.bfloat16, SINGLE), (torch.float64, DOUBLE)):
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.RMSNorm(6)).to(dtype)
        probe = Probe(model, (x.to(dtype),), {})
        weights = [w.detach() for w in probe.weights.values()]
        expected = F.rms_norm(F.linear(x.to(dtype).double(), weights[0]), (6,), weights[1], eps)
        assert torch.allclose(probe.run(0)[0], expected, rtol=1e-12)
        assert not torch.allclose(probe.run(0, eps=False)[0], expected, rtol=1e-12)


def test_parts_that_are_computed_again_in_the_backward_pass():
    """With the same types and without the same eps."""

    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    layers, x = (nn.Linear(4, 6, bias=False), nn.LayerNorm(6, eps=1e-3), nn.Linear(6, 2)), 0.01 * torch.randn(16, 4)
    plain, checkpointed = (Probe(kind(*layers), (x,), {}) for kind in (nn.Sequential, Checkpointed))
    for eps in (True, False):
        expected, found = (list(probe.differentiate(0, eps=eps)[1].values()) for probe in (plain, checkpointed))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
