from retract.manifolds import PSI, Rows
from retract.optim import AdamH
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import on

TITLE = "AdamH"
KNOBS = {"lr": 0.04, "rest": 4e-3}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on(PSI(), network, example, Rows.whole())
    return [AdamH(groups, lr=lr), AdamW(others, lr=rest, weight_decay=0.0)]
