from retract.manifolds import Euclidean
from retract.optim import Muon
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import on

TITLE = "Muon"
KNOBS = {"lr": 0.02, "rest": 4e-3, "decay": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[Optimizer]:
    groups, others = on(Euclidean(2), network, example)
    return [Muon(groups, lr=lr, weight_decay=decay), AdamW(others, lr=rest, weight_decay=0.0)]
