from retract.manifolds import PSI
from retract.optim import MuonH, PSIMuon
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import on

TITLE = "PSIMuon on queries and keys, MuonH"
KNOBS = {"lr": 0.04, "rest": 4e-3}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    (heads, whole), others = on(PSI(), network, example)
    rows = len(heads["params"][0]) // heads["rows"].blocks
    # In units of the norm of a head, as MuonH's: the spectral step has `rows` singular values of 1.
    return [
        PSIMuon([heads], lr=lr, scale=rows**-0.5),
        MuonH([whole], lr=lr),
        AdamW(others, lr=rest, weight_decay=0.0),
    ]
