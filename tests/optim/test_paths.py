"""Every path is the reference: points, state, and gradients that nobody writes to."""

import pytest
import torch
from memory import Peak
from optimizers import RULES
from paths import LAYOUTS, agree, forget_plans, run, sizes
from retract.errors import GradientError, StateError
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere
from retract.optim import PSISGD, SGDG, AdamG, RiemannianSGD
from torch import nn

FAST = {"foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_paths_agree(manifold, rule, path, device):
    """Every motion and transport; half of the layouts with each, the other half with the rules to both sides. The
    reference in float64 is the truth."""
    layouts, number = list(LAYOUTS), list(RULES).index(rule)
    moves = [(m, t) for m in ("retract", "exp") for t in ("manifold", "project", "parallel", "none")]
    for i, (motion, transport) in enumerate(moves):
        for j, layout in enumerate(layouts):
            if (i + j + number) % 2:
                continue
            options = {"motion": motion, "transport": transport, "maximize": (i + j) % 3 == 0}
            options["max_point_norm"] = 0.3 if (i + j) % 4 < 2 else None
            options["radius"] = "free" if (i + j) % 5 == 1 else "hold"
            exact = run(RULES[rule], manifold, layout, torch.float64, device, {"foreach": False}, **options)
            for dtype in (torch.float64, torch.float32):
                ours = run(RULES[rule], manifold, layout, dtype, device, FAST[path], **options)
                assert all(v.dtype == dtype for name, v in ours.items() if "step" not in name)
                agree(ours, exact, sizes(manifold, layout), dtype)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
@pytest.mark.parametrize("make", [SGDG, AdamG])
def test_the_penalty_goes_before_the_kernel(make, manifold, path, device):
    for layout in LAYOUTS:
        if layout != "long":
            options = {"maximize": layout == "whole"}
            exact = run(make, manifold, layout, torch.float64, device, {"foreach": False}, **options)
            ours = run(make, manifold, layout, torch.float64, device, FAST[path], **options)
            agree(ours, exact, sizes(manifold, layout), torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("manifold", [Euclidean(0), Euclidean(1)], ids=repr)
def test_flat_paths_agree(manifold, rule, device):
    """Where torch has the rule and where it has not; weight decay, and layouts that torch's fused path mistakes."""
    for layout in ("rows", "channels_last", "transposed"):
        for decay in (0.0, 0.1):
            exact = run(RULES[rule], manifold, layout, torch.float64, device, {"foreach": False}, weight_decay=decay)
            for path in ({}, *FAST.values()):
                ours = run(RULES[rule], manifold, layout, torch.float64, device, path, weight_decay=decay)
                agree(ours, exact, 1, torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("manifold", [PSI(), Grassmann(1), Euclidean(0)], ids=repr)
def test_checkpoints_change_paths_mid_run(manifold, rule, device):
    ways = [{"foreach": False}, {"fused": True}, {"foreach": True}, {}]
    for layout in ("channels_last", "transposed" if isinstance(manifold, Euclidean) else "joint"):
        exact = run(RULES[rule], manifold, layout, torch.float64, device, ways[0], steps=8)
        ours = run(RULES[rule], manifold, layout, torch.float64, device, *ways, steps=8)
        agree(ours, exact, sizes(manifold, layout), torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stacks(dtype, device):
    """Computed in float32 and rounded once, as on the reference path: all but the last bit agree."""
    for layout in ("rows", "joint"):
        exact = run(RULES["velocity"], PSI(), layout, dtype, device, {"foreach": False})
        for path in ({"foreach": True}, {}):
            ours = run(RULES["velocity"], PSI(), layout, dtype, device, path)
            for name in exact:
                assert torch.allclose(ours[name], exact[name], rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("path", [{}, {"foreach": False}, *FAST.values()], ids=str)
class TestWhatChangesBetweenSteps:
    """A plan holds only as long as nothing but addresses changes."""

    def twins(self, path, count=3):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(4, 6, dtype=torch.float64)) for _ in range(count)]
        return params, RiemannianSGD([{"params": params, "manifold": PSI()}], lr=0.1, momentum=0.9, **path)

    def compare(self, path, change, steps=6):
        """Against the reference path without any plans."""
        ends = []
        for forget, way in ((True, {"foreach": False}), (False, path)):
            params, optimizer = self.twins(way)
            torch.manual_seed(1)
            for t in range(steps):
                for p in params:
                    p.grad = torch.randn(p.shape, dtype=p.dtype)
                if t >= 2:
                    change(t, params, optimizer)
                if forget:
                    forget_plans(optimizer)
                optimizer.step()
            ends.append([p.detach() for p in params])
        assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(*ends, strict=True))

    def test_new_memory(self, path):
        def change(t, params, optimizer):
            for p in params:
                p.data = p.data.clone()

        self.compare(path, change)

    def test_other_layouts(self, path):
        def change(t, params, optimizer):
            params[0].data = params[0].data.T.contiguous().T
            params[1].grad = params[1].grad.T.contiguous().T

        self.compare(path, change)

    def test_gradients_come_and_go(self, path):
        def change(t, params, optimizer):
            params[t % 3].grad = None

        self.compare(path, change)

    def test_state_is_replaced(self, path):
        def change(t, params, optimizer):
            state = optimizer.state[params[0]]
            state["momentum_buffer"] = state["momentum_buffer"] / 2
            if t % 2:
                optimizer.load_state_dict(optimizer.state_dict())

        self.compare(path, change)

    def test_momentum_stops_and_starts(self, path):
        def change(t, params, optimizer):
            optimizer.param_groups[0]["momentum"] = 0.0 if t in (2, 3) else 0.9

        self.compare(path, change)

    def test_options_change(self, path):
        def change(t, params, optimizer):
            optimizer.param_groups[0].update(radius="free" if t < 4 else "hold", transport="none")
            if t == 3:  # what was held is no longer known
                for p in params:
                    del optimizer.state[p]["radius"]

        self.compare(path, change)

    def test_a_parameter_joins(self, path):
        def change(t, params, optimizer):
            if t == 3:
                params.append(nn.Parameter(torch.eye(4, 6, dtype=torch.float64)))
                optimizer.add_param_group({"params": [params[-1]], "manifold": PSI()})

        self.compare(path, change)

    def test_what_no_longer_fits_is_found_before_the_first_write(self, path):
        params, optimizer = self.twins(path)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        last = params[-1]
        last.data, last.grad = last.data.float(), None
        last.grad = torch.ones_like(last)
        before = [p.detach().clone() for p in params]
        with pytest.raises(
            StateError, match="parameter 2 of its group is torch.float32 .* its momentum_buffer torch.f"
        ):
            optimizer.step()
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("path", [{}, {"foreach": False}, *FAST.values()], ids=str)
def test_a_parameter_that_was_reshaped(path, momentum, device):
    """Its state says other rows than it has now."""
    w = nn.Parameter(torch.randn(4, 6, device=device))
    optimizer = RiemannianSGD([{"params": [w], "manifold": PSI()}], lr=0.1, momentum=momentum, **path)
    for shape in ((4, 6), (6, 4)):
        w.data, w.grad = w.data.view(shape), None
        w.grad = torch.ones_like(w)
        before = w.detach().clone()
        if shape == (4, 6):
            optimizer.step()
    with pytest.raises(
        StateError, match=r"of shape \(6, 4\) .* of shape \(4, (6|1)\) .*: the parameter or its state was changed"
    ):
        optimizer.step()
    assert torch.equal(w, before)


@pytest.mark.parametrize("path", [{}, {"foreach": False}, *FAST.values()], ids=str)
def test_a_first_step_that_another_group_prevents(path, device):
    """The step that comes through in the end sees the gradients of then."""
    ends = []
    for attempts in (1, 2):
        torch.manual_seed(0)
        groups = []
        for rows in (Rows(), Rows(dim=1), Rows()):
            groups.append({"params": [nn.Parameter(torch.randn(4, 6, device=device))], "manifold": PSI(), "rows": rows})
        params = [group["params"][0] for group in groups]
        optimizer = RiemannianSGD(groups, lr=0.1, momentum=0.9, **path)
        if attempts == 2:
            for p in params:
                p.grad = torch.full_like(p, 7.0)
            params[-1].grad = params[-1].grad.to_sparse()
            with pytest.raises(GradientError, match="sparse"):
                optimizer.step()
            assert not optimizer.state
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        ends.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_a_buffer_that_points_back(manifold, path, device):
    """Past a right angle a line is met from its other side."""
    ends = []
    for way in ({"foreach": False}, FAST[path]):
        torch.manual_seed(0)
        w = nn.Parameter(manifold.nearest(torch.randn(4, 6, dtype=torch.float64, device=device)))
        options = {"momentum": 0.9, "momentum_form": "velocity", "transport": "parallel"}
        optimizer = RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.1, **options, **way)
        w.grad = torch.randn_like(w)
        optimizer.step()
        buffer = optimizer.state[w]["momentum_buffer"]
        buffer.sub_(3 * w.detach())
        optimizer.step()
        ends.append((w.detach(), buffer))
    for ours, exact in zip(*ends, strict=True):
        assert torch.allclose(ours, exact, rtol=1e-11, atol=1e-12)


def test_autograd_sees_that_weights_were_written(device):
    for path in ({"foreach": False}, *FAST.values()):
        w = nn.Parameter(torch.randn(3, 4, device=device))
        loss = w.square().sum()
        loss.backward(retain_graph=True)
        PSISGD([{"params": [w], "manifold": PSI()}], **path).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


METHODS = {
    "psi-sgd": lambda w: PSISGD([{"params": [w], "manifold": PSI()}], foreach=False),
    "psi-sgdm": lambda w: PSISGD([{"params": [w], "manifold": PSI()}], momentum=0.9, foreach=False),
    "psi-sgdm-parallel": lambda w: PSISGD(
        [{"params": [w], "manifold": PSI()}], momentum=0.9, transport="parallel", foreach=False
    ),
    "sphere": lambda w: RiemannianSGD([{"params": [w], "manifold": Sphere()}], momentum=0.9, foreach=False),
    "sgdg": lambda w: SGDG([{"params": [w], "manifold": Grassmann(1)}], orthogonality=0.0, foreach=False),
    "adamg": lambda w: AdamG([{"params": [w], "manifold": Grassmann(1)}], orthogonality=0.0, foreach=False),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_reference_path_needs_less_memory_than_the_parameter(name, device):
    w = nn.Parameter(Sphere().random_point(4096, 1024, device=device))
    w.grad = torch.randn_like(w)
    optimizer = METHODS[name](w)
    optimizer.step()
    with Peak() as peak:
        optimizer.step()
    assert peak.most <= w.numel() * 4


@pytest.mark.parametrize("path", FAST)
def test_a_view_of_the_same_size_and_strides_is_another_matrix(path):
    """12 × 3 with the strides (6, 1) of the 6 × 6 matrix that it replaces; rows used to be read across the gaps."""

    def end(options):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        optimizer = RiemannianSGD([{"params": [p], "manifold": PSI(), "radius": "free"}], lr=0.1, **options)
        for view in (p.data, p.data, torch.randn(12, 6, generator=generator, dtype=torch.float64)[:, :3]):
            p.grad, p.data = None, view
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(end(FAST[path]), end({"foreach": False}))
