"""Low-rank adapters: declared in one call, trained from B = 0 and from the principal part of the base weight."""

import copy

import pytest
import retract
import torch
from retract import psi
from retract.errors import DeclarationError, GeometryError
from retract.manifolds import Factors, FixedRank, Part
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

WIDTH = 32
RATES = (1e-3, 0.1, 0.9)
DAMPING = 1e-2
OPTIMIZERS = {"SGD": RiemannianSGD, "Adam": RiemannianAdam}


class ByHand(nn.Module):
    """W + B A."""

    scaling = 1.0
    factors = ("lora_B.weight", "lora_A.weight")

    def __init__(self, base, rank):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def both(self):
        return self.lora_B, self.lora_A

    def forward(self, x):
        up, down = self.both()
        return self.base_layer(x) + self.scaling * up(down(x))


class AsInPeft(ByHand):
    """With factors in dictionaries by the adapter's name, and scaled."""

    scaling = 0.5
    factors = ("lora_B.default.weight", "lora_A.default.weight")

    def __init__(self, base, rank):
        super().__init__(base, rank)
        self.lora_A, self.lora_B = (nn.ModuleDict({"default": layer}) for layer in (self.lora_A, self.lora_B))

    def both(self):
        return self.lora_B["default"], self.lora_A["default"]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        y = self.first(x)
        q, k, v = (layer(y).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.second(x))))


def transformer(rank, kind=ByHand):
    """One block and a head, frozen, with adapters on queries and values."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Linear(WIDTH, 8)).requires_grad_(False)
    model[0].query, model[0].value = kind(model[0].query, rank), kind(model[0].value, rank)
    return model


def names(kind):
    return [f"0.{which}.{name}" for which in ("query", "value") for name in kind.factors]


def adapters(model):
    return [module for module in model.modules() if isinstance(module, ByHand)]


@torch.no_grad()
def task(model):
    """Inputs, and the outputs of the network with a change of rank 2 in each adapted layer."""
    generator = torch.Generator().manual_seed(1)
    teacher = copy.deepcopy(model)
    for adapter in adapters(teacher):
        weight = adapter.base_layer.weight
        u, v = torch.randn(2, WIDTH, 2, generator=generator, dtype=weight.dtype)
        weight.add_(4 / WIDTH * u @ v.mT)
    x = torch.randn(16, 6, WIDTH, generator=generator, dtype=weight.dtype)
    return x, teacher(x)


def losses(model, make, steps, x, y):
    """Before each step and after the last."""
    optimizer, found = make(retract.param_groups(model)), []
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum(-1).mean()
        found.append(loss.item())
        loss.backward()
        if step < steps:
            optimizer.step()
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def start_at_principal(adapter):
    """Move the principal part of the base weight into the adapter."""
    up, down = adapter.both()
    manifold = FixedRank(down.out_features, up.out_features)
    b, a = manifold.split(manifold.principal(adapter.base_layer.weight / adapter.scaling))
    up.weight.copy_(b)
    down.weight.copy_(a.mT)
    adapter.base_layer.weight.sub_(adapter.scaling * b @ a.mT)


def declare(model, damping=0.0, representative="keep"):
    """Every adapter, by hand."""
    for path, adapter in model.named_modules():
        if isinstance(adapter, ByHand):
            up, down = (f"{path}.{name}" for name in adapter.factors)
            factors = Factors((Part(up, dim=1),), (Part(down),))
            retract.declare(
                model,
                factors,
                FixedRank(adapter.both()[1].out_features, damping=damping),
                representative=representative,
            )
    return model


@pytest.mark.parametrize("kind", [ByHand, AsInPeft])
def test_one_call_declares_the_adapters_and_nothing_else(kind):
    model = transformer(4, kind)
    before = copy.deepcopy(model.state_dict())
    report = psi.declare(model, torch.randn(2, 5, WIDTH), pairs=True, damping=DAMPING)
    declared = retract.declared(model)
    assert {name for pair in report.declared_pairs for name in pair.names} == set(names(kind))
    assert [d.manifold for d in declared.values()] == 2 * [FixedRank(4, WIDTH, damping=DAMPING)]
    assert report.declared == ()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    trained = {p for group in retract.param_groups(model) for p in group["params"] if p.requires_grad}
    assert trained == set(map(model.get_parameter, names(kind)))


@pytest.mark.parametrize("start", ["zero", "principal"])
@pytest.mark.parametrize("rank", [4, WIDTH])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_no_rate_below_one_explodes(make, rank, start):
    """There are two directions to learn, and at full rank the smallest singular values of the principal start are nearly 0."""
    model = transformer(rank, AsInPeft)
    x, y = task(model)
    if start == "principal":
        before = model(x)
        for adapter in adapters(model):
            start_at_principal(adapter)
        assert torch.allclose(model(x), before, atol=1e-5)
    declare(model, DAMPING)
    for lr in RATES:
        found = losses(copy.deepcopy(model), lambda groups, lr=lr: make(groups, lr=lr), 20, x, y)
        assert found.isfinite().all()
        assert found[1] < found[0], f"lr {lr}: {found[:2]}"
        assert found.max() == found[0], f"lr {lr}: {found}"


def test_damping_is_what_bounds_the_steps():
    """The control of the test above, near the smallest singular values."""
    model = transformer(WIDTH, AsInPeft)
    x, y = task(model)
    for adapter in adapters(model):
        start_at_principal(adapter)
    found = losses(declare(model), lambda groups: RiemannianAdam(groups, lr=0.5), 20, x, y)
    assert not found.max() < 10 * found[0]


STEPS = {
    "SGD": lambda groups: RiemannianSGD(groups, lr=0.1),
    "momentum": lambda groups: RiemannianSGD(groups, lr=0.05, momentum=0.9),
    "Adam": lambda groups: RiemannianAdam(groups, lr=0.01),
}
PLAIN = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


def equivalent(kind, generator):
    """A network in float64 with adapters of full rank, and one with other factors of the same products, by matrices of condition 1e4."""
    model = transformer(4, kind).double()
    x, y = task(model)
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.both()[0].weight.normal_(std=0.1, generator=generator)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for adapter in adapters(twin):
            up, down = (layer.weight for layer in adapter.both())
            left, right = (torch.linalg.qr(torch.randn(4, 4, dtype=x.dtype, generator=generator))[0] for _ in range(2))
            g = left * torch.logspace(-2, 2, 4, dtype=x.dtype) @ right
            up.copy_(up @ g)
            down.copy_(torch.linalg.solve(g, down))
    return model, twin, x, y


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_equivalent_adapters_train_alike(make, generator):
    """Theorem 1 of Yi (2022), without damping."""
    model, twin, x, y = equivalent(AsInPeft, generator)
    start = copy.deepcopy(model)
    ours, theirs = (losses(declare(each), make, 100, x, y) for each in (model, twin))
    assert (ours - theirs).abs().max() <= 1e-10
    assert ours[-1] < 0.9 * ours[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert moved == set(names(AsInPeft))


@pytest.mark.parametrize("optimizer", PLAIN.values(), ids=PLAIN)
def test_plain_optimizers_train_equivalent_adapters_differently(optimizer, generator):
    model, twin, x, y = equivalent(ByHand, generator)
    ours, theirs = (
        losses(each, lambda groups: optimizer(adapted(groups), lr=1e-3), 100, x, y) for each in (model, twin)
    )
    assert (ours - theirs).abs().max() > 1e-2 * ours[0]


def adapted(groups):
    return [p for group in groups for p in group["params"] if p.requires_grad]


LACK = r"0\.\w+\.lora_B.*row 0.*factor B has rank below 4, with the smallest singular value 0 beside 0"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, GeometryError, LACK + ".*damping=1e-2"),
        ({"damping": DAMPING, "representative": "balanced"}, DeclarationError, LACK + ".*representative='keep'"),
        ({"damping": 1.0}, GeometryError, r"damping=1.0 is not a number in \[0, 1\)"),
        ({"damping": -0.1}, GeometryError, r"damping=-0.1 is not a number in \[0, 1\)"),
    ],
    ids=["undamped", "balanced", "damping 1", "damping below 0"],
)
def test_what_is_refused_changes_nothing(options, error, match):
    model = transformer(4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        psi.declare(model, torch.randn(2, 5, WIDTH), pairs=True, **options)
    assert retract.declared(model) == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_factors_of_lower_rank_have_no_balanced_representative(damping):
    model = transformer(4)
    with torch.no_grad():
        nn.init.normal_(model[0].query.lora_B.weight)[:, 2:] = 0
    with pytest.raises(DeclarationError, match=r"smallest singular value 0 beside \d\.\d.*FixedRank.principal"):
        declare(model, damping, "balanced")


def test_the_principal_part_is_the_nearest_of_its_rank():
    w = torch.randn(3, 7, 5, dtype=torch.float64)
    x = FixedRank(2, 7).principal(w)
    b, a = FixedRank(2, 7).split(x)
    left, values, right = torch.linalg.svd(w, full_matrices=False)
    nearest = left[..., :2] * values[:, None, :2] @ right[:, :2]
    assert torch.allclose(b @ a.mT, nearest, atol=1e-12)
    assert torch.allclose(b.mT @ b, a.mT @ a, atol=1e-12)
    assert torch.equal(FixedRank(2).principal(w), x)
    for manifold, matrix, match in (
        (FixedRank(2, 5), w, "n=7"),
        (FixedRank(1, degree=2.0), w, "degree 1"),
        (FixedRank(6), w, "n, m ≥ 6"),
        (FixedRank(2), w[..., :1] * torch.ones(5, dtype=w.dtype), "rank below 2"),
    ):
        with pytest.raises(GeometryError, match=match):
            manifold.principal(matrix)


def test_a_run_that_diverges_ends_with_losses_that_are_not_finite():
    """Not with an error of LAPACK in the middle of a step."""
    model = declare(transformer(4), DAMPING)
    x, y = task(model)
    found = losses(model, lambda groups: RiemannianAdam(groups, lr=1e30), 4, x, y)
    assert not found[-1].isfinite()
