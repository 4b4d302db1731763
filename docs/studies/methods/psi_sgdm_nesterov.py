from retract.manifolds import PSI
from retract.optim import PSISGD
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from studies.split import on

TITLE = "Nesterov PSI-SGDM"
KNOBS = {"lr": 0.1, "rest": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on(PSI(), network, example)
    return [PSISGD(groups, lr=lr, momentum=0.9, nesterov=True), SGD(others, lr=rest, momentum=0.9, nesterov=True)]
