from retract.optim import RiemannianAdam
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.adapters import on_fixed_rank

TITLE = "Adam on FixedRank"
KNOBS = {"lr": 0.025, "rest": 0.016}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on_fixed_rank(network)
    return [RiemannianAdam(groups, lr=lr), AdamW(others, lr=rest, weight_decay=0.0)]
