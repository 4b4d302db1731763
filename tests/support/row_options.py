"""Options and rules with which the row kernels of all backends are tested."""

from retract.optim.options import COMMON
from retract.optim.rules import Adam, Momentum

OPTIONS = {
    **{name: option.default for name, option in COMMON.items()},
    "lr": 0.3,
    "momentum": 0.9,
    "dampening": 0.25,
    "nesterov": False,
    "momentum_form": "heavy_ball",
    "maximize": False,
    "max_point_norm": None,
    "orthogonality": 0.0,
    "radius": "hold",
    "betas": (0.8, 0.95),
    "eps": 1e-3,
    "eps_form": "outside",
    "capturable": False,
    "differentiable": False,
}
RULES = {
    "plain": (Momentum(), {"momentum": 0.0}),
    "heavy-ball": (Momentum(), {}),
    "nesterov": (Momentum(), {"nesterov": True, "dampening": 0.0}),
    "velocity": (Momentum(), {"momentum_form": "velocity"}),
    "velocity-nesterov": (Momentum(), {"nesterov": True, "dampening": 0.0, "momentum_form": "velocity"}),
    "adam": (Adam(), {}),
    "adam-inside": (Adam(), {"eps_form": "inside"}),
}
