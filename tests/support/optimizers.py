"""One optimizer of each kind, by name; each takes parameters or groups."""

from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD

OPTIMIZERS = {
    "sgd": lambda p: RiemannianSGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: RiemannianAdam(p, lr=0.01),
    "psi-sgdm": lambda p: PSISGD(p, lr=0.05, momentum=0.9),
    "psi-sgdm-free": lambda p: PSISGD(p, lr=0.05, momentum=0.9, radius="free"),
    "sgdg": lambda p: SGDG(p, lr=0.05, transport="project"),
    "adamg": lambda p: AdamG(p, lr=0.01, transport="project"),
}
