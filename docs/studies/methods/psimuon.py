from retract.manifolds import PSI
from retract.optim import PSIMuon
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import on

TITLE = "PSIMuon"
KNOBS = {"lr": 0.05, "rest": 4e-3}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on(PSI(), network, example)
    return [PSIMuon(groups, lr=lr), AdamW(others, lr=rest, weight_decay=0.0)]
