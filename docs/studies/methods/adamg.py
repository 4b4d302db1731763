from retract.manifolds import Grassmann
from retract.optim import AdamG
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import on

TITLE = "Adam-G"
KNOBS = {"lr": 0.05, "rest": 4e-3}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on(Grassmann(1), network, example)
    return [AdamG(groups, lr=lr), AdamW(others, lr=rest, weight_decay=0.0)]
