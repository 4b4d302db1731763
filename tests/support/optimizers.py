"""The optimizers of the tests, by name. Each takes parameters or groups, and options in place of the usual ones."""

from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD


def of(optimizer, **usual):
    return lambda p, **options: optimizer(p, **{**usual, **options})


OPTIMIZERS = {
    "sgd": of(RiemannianSGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": of(RiemannianAdam, lr=0.01),
    "psi-sgdm": of(PSISGD, lr=0.05, momentum=0.9),
    "psi-sgdm-free": of(PSISGD, lr=0.05, momentum=0.9, radius="free"),
    "sgdg": of(SGDG, lr=0.05, transport="project"),
    "adamg": of(AdamG, lr=0.01, transport="project"),
}
"""One of each kind."""

RULES = {
    "plain": of(RiemannianSGD, lr=0.05),
    "heavy-ball": of(RiemannianSGD, lr=0.05, momentum=0.9, dampening=0.2),
    "nesterov": OPTIMIZERS["sgd"],
    "velocity": of(RiemannianSGD, lr=0.05, momentum=0.9, dampening=0.2, momentum_form="velocity"),
    "velocity-nesterov": of(RiemannianSGD, lr=0.05, momentum=0.9, nesterov=True, momentum_form="velocity"),
    "adam": OPTIMIZERS["adam"],
    "adam-inside": of(RiemannianAdam, lr=0.01, eps_form="inside", eps=1e-3),
}
"""One for each formula of a rule."""

VARIANTS = OPTIMIZERS | {
    "sgd-plain": RULES["plain"],
    "sgd-momentum": of(RiemannianSGD, lr=0.05, momentum=0.9),
    "sgd-velocity-project": of(RiemannianSGD, lr=0.05, momentum=0.9, momentum_form="velocity", transport="project"),
    "sgd-free": of(RiemannianSGD, lr=0.05, momentum=0.9, radius="free"),
    "sgd-exponential": of(RiemannianSGD, lr=0.05, momentum=0.9, motion="exp"),
    "psi-sgd": of(PSISGD, lr=0.05),
    "psi-sgdm-project": of(PSISGD, lr=0.05, momentum=0.9, transport="project"),
    "psi-sgdm-parallel": of(PSISGD, lr=0.05, momentum=0.9, transport="parallel"),
}
"""And with other motions, transports and radii."""
