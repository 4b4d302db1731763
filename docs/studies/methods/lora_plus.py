from torch import Tensor, nn
from torch.optim import AdamW

from studies.adapters import factors

TITLE = "LoRA+"
KNOBS = {"lr": 1e-3, "rest": 0.016, "ratio": 16.0}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, ratio: float) -> list[AdamW]:
    a, b, others = factors(network)
    groups = [{"params": a, "lr": lr}, {"params": b, "lr": ratio * lr}, {"params": others, "lr": rest}]
    return [AdamW(groups, weight_decay=0.0)]
