"""What an average of weights is worth on PSI: python docs/benchmarks/averaging.py [seeds]

Digits of scikit-learn, an MLP with two scale-invariant layers, PSISGD at a high constant rate. From epoch 10 on the
network of each epoch goes into three averages: torch's of raw rows, that of `retract.optim.get_multi_avg_fn`, and the mean of
unit rows computed at the end from all of them. All statistics are recalibrated. Printed per option `radius`: how much
the norms differ that are averaged, then for each network accuracy and loss on the test set, and the angle between its
rows of the first layer and the mean of unit rows; means over the seeds.
"""

import copy
import sys

import torch
from retract import param_groups, psi
from retract.manifolds import PSI
from retract.optim import PSISGD, get_multi_avg_fn
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel

DIGITS = load_digits()
INPUTS, LABELS = torch.tensor(DIGITS.data / 16, dtype=torch.float32), torch.tensor(DIGITS.target)
TRAIN, TEST = torch.randperm(len(INPUTS), generator=torch.Generator().manual_seed(0)).split([1000, len(INPUTS) - 1000])
INVARIANT = (0, 3)


def network():
    def block(inputs):
        return [nn.Linear(inputs, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]

    net = nn.Sequential(*block(64), *block(64), nn.Linear(64, 10))
    psi.declare(net, INPUTS[:32])
    return net


def run(seed, radius):
    """By which factor the averaged norms of each row differ, and the networks to compare; the last one is the mean of unit rows."""
    torch.manual_seed(seed)
    net = network()
    groups = param_groups(net, euclidean={"lr": 0.05})
    optimizer = PSISGD(groups, lr=0.3, momentum=0.9, radius=radius)
    raw, ours = AveragedModel(net), AveragedModel(net, multi_avg_fn=get_multi_avg_fn(net))
    history = []
    for epoch in range(20):
        for batch in TRAIN[torch.randperm(len(TRAIN))].split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(INPUTS[batch]), LABELS[batch]).backward()
            optimizer.step()
        if epoch >= 10:
            raw.update_parameters(net)
            ours.update_parameters(net)
            history.append([net[i].weight.detach().clone() for i in INVARIANT])
    exact = copy.deepcopy(ours.module)
    for i, rows in zip(INVARIANT, zip(*history, strict=True), strict=True):
        exact[i].weight.data = sum(map(PSI().canonical, rows))
    norms = torch.stack([rows.norm(dim=1) for rows, _ in history])
    return norms.amax(0) / norms.amin(0), {
        "last": net,
        "raw rows": raw.module,
        "averaging": ours.module,
        "unit rows": exact,
    }


@torch.no_grad()
def judge(net, exact):
    """Accuracy in percent and loss on the test set, and the mean angle to the rows of `exact` in degrees."""
    psi.recalibrate(net, INPUTS[TRAIN].split(100))
    outputs = net.eval()(INPUTS[TEST])
    accuracy = 100 * (outputs.argmax(1) == LABELS[TEST]).double().mean()
    angle = torch.rad2deg(PSI().dist(net[0].weight, exact[0].weight)).mean()
    return torch.stack([accuracy, nn.functional.cross_entropy(outputs, LABELS[TEST]), angle])


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for radius in ("hold", "free"):
        runs = [run(seed, radius) for seed in range(seeds)]
        spread = torch.cat([spread for spread, _ in runs])
        double = 100 * (spread > 2).double().mean()
        print(
            f"radius={radius}: norms of a row differ by a factor above 2 in {double:.0f} % of them, by up to {spread.max():.1f}"
        )
        for name in runs[0][1]:
            means = sum(judge(nets[name], nets["unit rows"]) for _, nets in runs) / seeds
            print(f"  {name:10} accuracy {means[0]:.1f} %, loss {means[1]:.3f}, angle {means[2]:.2f}°")
