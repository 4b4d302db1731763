"""Random lives of optimizers: what happens to a run between its first step and its last, on several paths in lockstep.

A `Life` draws a manifold, an optimizer and a history: steps, gradients that are missing, zero, radial or laid out otherwise,
parameters that freeze and thaw, options that change on the way, state that is loaded from another path or in another
dtype, groups that join. Each path has parameters of its own. After every step all paths are compared with the first, on which
`update.update` runs without any plan, and go on from where that one is. Every array is a window in a larger allocation, whose
other elements must stay as they are.
"""

import copy
import math
import random

import torch
from paths import forget_plans
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.manifolds.parameters.rows import gather, scatter_
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from retract.optim.rules import Adam, Momentum
from torch import nn

HALF = (torch.float16, torch.bfloat16)
MANIFOLDS = [PSI(), PSI(), Sphere(), Grassmann(1), Euclidean(0), Euclidean(0), Euclidean(1), Grassmann(2), Stiefel()]
OPTIMIZERS = [RiemannianSGD, RiemannianSGD, RiemannianAdam, PSISGD, SGDG, AdamG]
PATHS = {
    "update": {"foreach": False, "fused": False},
    "reference": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
GUARD, MARK = 16, 7.0
VECTORS = [(4, 6), (3, 9), (6, 2, 3, 2), (5, 4), (2, 300), (40, 3)]
MATRICES = [(4, 2), (2, 5, 2), (3, 4, 2)]


class _Momentum(Momentum):
    """A rule that torch's functions do not know either, so that `update.update` runs alone."""


class _Adam(Adam):
    """The same for Adam."""


class Run:
    """The parameters and the optimizer of one path."""

    def __init__(self, name, life):
        self.name, self.path, self.life = name, PATHS[name], life
        self.bases = []
        """What the windows lie in."""
        self.params, self.groups = [], []
        self.optimizer = None

    def window(self, values, order=None):
        """A copy of `values` with its axes in memory in the order `order`, between guards."""
        order = list(order or range(values.ndim))
        base = torch.full((values.numel() + 2 * GUARD,), MARK, dtype=values.dtype)
        self.bases.append(base)
        inner = base[GUARD : GUARD + values.numel()].view([values.shape[i] for i in order])
        result = inner.permute([order.index(i) for i in range(values.ndim)])
        result.copy_(values)
        return result

    def add(self, kind, options):
        """A group of parameters as `Life.group` describes it."""
        params = [nn.Parameter(self.window(values, order)) for values, order in kind["values"]]
        group = {"params": params, "manifold": kind["manifold"], "rows": kind["rows"], **options}
        if kind["joint"]:
            group["joined"] = [tuple(params)]
        group |= {"foreach": None, "fused": None} if self.is_refused(kind["manifold"]) else self.path
        self.params.append(params)
        if self.optimizer is None:
            self.optimizer = self.life.make([group])
            if self.name == "update":
                self.optimizer.rule = _Adam() if isinstance(self.optimizer.rule, Adam) else _Momentum()
        else:
            self.optimizer.add_param_group(group)

    def is_refused(self, manifold):
        """Whether this path refuses points of `manifold`."""
        return manifold.event_ndim == 2 or (
            self.name == "fused" and self.life.dtype in HALF and not isinstance(manifold, Euclidean)
        )

    def guard_state(self):
        """Move new state into windows."""
        for state in self.optimizer.state.values():
            for key, value in state.items():
                if key != "step" and not any(
                    value.untyped_storage().data_ptr() == base.untyped_storage().data_ptr() for base in self.bases
                ):
                    order = sorted(range(value.ndim), key=lambda i: -value.stride()[i])
                    state[key] = self.window(value, order)

    def step(self, grads):
        """One step with copies of `grads`, which must stay as they are."""
        given = []
        for p, (values, order) in zip([p for params in self.params for p in params], grads, strict=True):
            p.grad = None if values is None else self.window(values, order)
            given.append(p.grad)
        versions = [(p, p._version) for params in self.params for p in params if p.grad is not None]
        if self.name == "update":
            forget_plans(self.optimizer)
        self.optimizer.step()
        for grad, (values, _) in zip(given, grads, strict=True):
            assert grad is None or torch.equal(grad, values), f"{self.name}: a gradient was written to"
        late = [(tuple(p.shape), p._version, was) for p, was in versions if p._version <= was]
        assert not late, f"{self.name}: versions of {late} were not raised"
        assert all((base[:GUARD] == MARK).all() and (base[-GUARD:] == MARK).all() for base in self.bases), (
            f"{self.name}: memory beside an array was written to"
        )
        grad_bases = {grad.untyped_storage().data_ptr() for grad in given if grad is not None}
        self.bases = [base for base in self.bases if base.untyped_storage().data_ptr() not in grad_bases]

    def arrays(self):
        """Parameters and state by name."""
        found = {}
        for i, params in enumerate(self.params):
            for j, p in enumerate(params):
                found[f"parameter {i}.{j}"] = p.detach()
                found |= {f"{key} of {i}.{j}": value for key, value in self.optimizer.state.get(p, {}).items()}
        return found


class Life:
    """Everything that the paths of one life have in common; `seed` decides all of it."""

    def __init__(self, seed, dtype):
        self.random, self.dtype = random.Random(f"{seed} {dtype}"), dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.log = [f"seed {seed} {dtype}"]
        self.kind = self.random.choice(OPTIMIZERS)
        self.adam = self.kind in (RiemannianAdam, AdamG)
        self.runs = [Run(name, self) for name in PATHS]
        self.kinds = []
        self.frozen = set()
        for _ in range(self.random.choice([1, 1, 2])):
            self.group()

    def often(self, share):
        return self.random.random() < share

    def normal(self, shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def make(self, groups):
        """An optimizer of `groups`, which say all that the presets differ in."""
        return self.kind(groups)

    def order(self, ndim):
        """Of axes in memory: usually as they stand."""
        order = list(range(ndim))
        if self.often(0.25):
            self.random.shuffle(order)
        return order

    def group(self):
        """One more group on every path."""
        manifold = self.random.choice(MANIFOLDS)
        if self.dtype in HALF and manifold.event_ndim == 2:
            manifold = Sphere()
        joint = manifold.event_ndim == 1 and not isinstance(manifold, Euclidean) and self.often(0.25)
        rows = self.random.choice([Rows(), Rows(), Rows.whole()]) if manifold.event_ndim == 1 and not joint else Rows()
        shapes = [
            self.random.choice(MATRICES if manifold.event_ndim == 2 else VECTORS)
            for _ in range(self.random.randint(1, 3))
        ]
        if joint:
            shapes = [shapes[0], (shapes[0][0],)]
        values = [self.normal(shape) for shape in shapes]
        layouts = [rows.layout(v, manifold.event_ndim) for v in values]
        sets = [range(len(values))] if joint else [[i] for i in range(len(values))]
        for members in sets:
            parts, theirs = [values[i] for i in members], [layouts[i] for i in members]
            scatter_(manifold.nearest(gather(parts, theirs).clone()), parts, theirs)
        if manifold == PSI() and self.often(0.5):
            scale = 10.0 ** self.random.uniform(-3, 3)
            values = [v * scale for v in values]
        values = [(v.to(self.dtype), self.order(v.ndim)) for v in values]
        kind = {"manifold": manifold, "rows": rows, "joint": joint, "values": values}
        options = self.options(manifold)
        self.log.append(f"group of {manifold!r} {rows!r} joint={joint} {shapes} {options}")
        self.kinds.append(kind)
        for run in self.runs:
            run.add(kind, options)

    def options(self, manifold):
        """Admissible ones for `manifold`, of all that the rule has."""
        chosen = {
            name: self.draw(name, manifold)
            for name in ("lr", "motion", "transport", "radius", "maximize", "max_point_norm")
        }
        chosen["orthogonality"] = self.draw("orthogonality", manifold)
        chosen["weight_decay"] = self.draw("weight_decay", manifold)
        if self.adam:
            chosen["eps_form"] = self.random.choice(["outside", "inside"])
        else:
            chosen["momentum"] = self.draw("momentum", manifold)
            chosen["momentum_form"] = self.random.choice(["heavy_ball", "velocity"])
            chosen["dampening"] = self.random.choice([0.0, 0.0, 0.25])
            chosen["nesterov"] = chosen["momentum"] > 0 and chosen["dampening"] == 0 and self.often(0.5)
        if chosen["motion"] == "exp" and manifold == Stiefel():
            chosen["transport"] = "project"
        return chosen

    def draw(self, name, manifold):
        """A value for an option, one that `manifold` can honour or ignores."""
        curved = not isinstance(manifold, Euclidean)
        choices = {
            "lr": [0.03, 0.1, 0.3, 0.0],
            "motion": ["retract", "exp"],
            "transport": ["none", "project"] if manifold == Stiefel() else ["manifold", "project", "parallel", "none"],
            "radius": ["hold", "free"],
            "maximize": [False, False, True],
            "max_point_norm": [None, None, 0.3],
            "orthogonality": [0.0, 0.0, 0.1] if manifold.event_ndim < 2 else [0.0],
            "weight_decay": [0.0] if curved else [0.0, 0.1],
            "momentum": [0.0, 0.9, 0.9],
        }
        return self.random.choice(choices[name])

    def change(self):
        """Change an option of a group, on every path."""
        i = self.random.randrange(len(self.kinds))
        group = self.runs[0].optimizer.param_groups[i]
        names = ["lr", "lr", "transport", "radius", "maximize", "max_point_norm", "weight_decay", "orthogonality"]
        name = self.random.choice(names if self.adam else [*names, "momentum", "momentum", "momentum"])
        changes = {name: self.draw(name, self.kinds[i]["manifold"])}
        if name == "momentum" and not changes["momentum"]:
            changes["nesterov"] = False
        if name == "transport" and self.kinds[i]["manifold"] == Stiefel() and group["motion"] == "exp":
            changes = {}
        if name == "lr" and self.often(0.2):
            changes["lr"] = torch.tensor(changes["lr"])
        self.log.append(f"group {i} gets {changes}")
        for run in self.runs:
            run.optimizer.param_groups[i].update(changes)

    def load(self):
        """Every path goes on in a new optimizer, from the state_dict of the path before it, perhaps with vectors of float32."""
        narrow = self.dtype == torch.float64 and self.often(0.3)
        self.log.append(f"load, narrow={narrow}")
        saved = [copy.deepcopy(run.optimizer.state_dict()) for run in self.runs]
        for i, run in enumerate(self.runs):
            its = saved[i - 1]
            for group, mine in zip(its["param_groups"], run.optimizer.param_groups, strict=True):
                group.update({key: mine[key] for key in ("foreach", "fused")})
            for state in its["state"].values():
                for key in {"momentum_buffer", "exp_avg"} & state.keys():
                    state[key] = state[key].float() if narrow else state[key]
            run.optimizer.load_state_dict(its)

    def relocate(self):
        """A parameter moves in memory, perhaps to another order of its axes; its state stays."""
        i = self.random.randrange(len(self.kinds))
        j = self.random.randrange(len(self.kinds[i]["values"]))
        order = self.order(self.kinds[i]["values"][j][0].ndim)
        self.log.append(f"parameter {i}.{j} moves to order {order}")
        for run in self.runs:
            p = run.params[i][j]
            p.grad = None
            p.data = run.window(p.detach(), order)

    def gradient(self, i, j):
        """Of parameter j of group i, in some order of axes; None where it is frozen or missing."""
        kind = self.kinds[i]
        p = self.runs[0].params[i][j].detach()
        size = math.sqrt(p.numel() / p.shape[0])
        points = math.prod(kind["rows"].layout(p, kind["manifold"].event_ndim).batch)
        scale = float(p.double().norm() / points**0.5) if kind["manifold"] == PSI() else 1.0
        how = self.random.choice(["normal"] * 8 + ["zero", "radial", "zero rows"])
        noise = self.normal(p.shape) / size / max(scale, 1e-3)
        grad = {
            "normal": lambda: noise,
            "zero": lambda: 0.0 * noise,
            "zero rows": lambda: noise * (torch.arange(p.shape[0]) % 2).view(-1, *[1] * (p.ndim - 1)),
            "radial": lambda: 0.5 * p.double() / max(scale, 1e-3) ** 2 + 1e-3 * noise,
        }[how]()
        return grad.to(self.dtype), self.order(p.ndim)

    def gradients(self):
        """One for each parameter; parts of joint points are frozen together."""
        for i, kind in enumerate(self.kinds):
            for j in range(len(kind["values"])):
                if self.often(0.15):
                    self.frozen ^= {(i, 0 if kind["joint"] else j)}
        grads = []
        for i, kind in enumerate(self.kinds):
            for j in range(len(kind["values"])):
                grad = self.gradient(i, j)
                grads.append((None, None) if (i, 0 if kind["joint"] else j) in self.frozen else grad)
        return grads

    def compare(self):
        """All paths with the first, which they then follow."""
        first, *others = self.runs
        exact = first.arrays()
        for run in others:
            ours = run.arrays()
            assert ours.keys() == exact.keys(), f"{run.name} has {sorted(ours.keys() ^ exact.keys())} or lacks them"
            for name, value in exact.items():
                mine = ours[name]
                assert mine.dtype == value.dtype, f"{run.name}: {name} is {mine.dtype}, not {value.dtype}"
                self.agree(f"{run.name}: {name}", mine, value, exact["parameter " + name.split()[-1]])
                mine.copy_(value)

    def agree(self, what, ours, exact, points):
        """Equal up to the rounding of sums, and in half precision up to that of the storage. What is rounded of a vector is
        as long as its point before the part along that is taken away."""
        assert torch.isfinite(exact).all(), f"{what} is not finite"
        half = exact.dtype in HALF
        sums = torch.finfo(torch.float64 if self.dtype == torch.float64 else torch.float32).eps
        size = max(float(exact.abs().max()), float(points.abs().max()) if exact.shape == points.shape else 0.0, 1e-3)
        bound = torch.full(exact.shape, 64 * sums * (8 + exact.numel() ** 0.5) * size, dtype=torch.float64)
        if half:
            bound = bound + torch.finfo(exact.dtype).eps * exact.abs().double() + torch.finfo(exact.dtype).tiny
        off = (ours.double() - exact.double()).abs() / bound
        assert off.max() <= 1, f"{what} is off by {float(off.max()):.3g} times the bound"

    def live(self, steps=8):
        """The whole life; the history goes into what is raised."""
        events = [self.change, self.change, self.load, self.relocate, self.group]
        try:
            for step in range(steps):
                if step and self.often(0.6):
                    event = self.random.choice(events)
                    if event != self.group or len(self.kinds) < 4:
                        event()
                grads = self.gradients()
                self.log.append(f"step {step}, frozen {sorted(self.frozen)}")
                for run in self.runs:
                    run.step(grads)
                self.compare()
                if self.often(0.5):
                    for run in self.runs:
                        run.guard_state()
        except Exception as error:
            raise AssertionError("\n".join([*self.log, repr(error)])) from error
