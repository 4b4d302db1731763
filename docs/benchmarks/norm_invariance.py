"""Which rescalings leave a run unchanged: 12 rows in front of a normalization, 150 steps, rows times 1e-2 to 1e2 and the tensor times 7.

    .venv/bin/python docs/benchmarks/norm_invariance.py

The loss is a function of the directions of the rows, so that a network cannot tell the weights from rescaled ones. Printed is the
largest relative difference of the loss curves, in float64. The last column is what the table of the page on optimizers says;
a test compares both.
"""

import torch
from retract import optim
from retract.manifolds import PSI, CenteredSphere, Euclidean, Grassmann, Rows, SpectralSphere, Sphere, Stiefel
from torch import nn

STEPS, ROWS, INPUTS = 150, 12, 24
WHOLE = Rows.whole()
OPTIMIZERS = [
    (optim.RiemannianSGD, Euclidean(0), Rows(), "–"),
    (optim.RiemannianAdam, Euclidean(0), Rows(), "–"),
    (optim.PSISGD, PSI(), Rows(), "rows"),
    (optim.SGDG, Grassmann(1), Rows(), "rows"),
    (optim.AdamG, Grassmann(1), Rows(), "rows"),
    (optim.Muon, Euclidean(2), Rows(), "–"),
    (optim.MuonH, PSI(), WHOLE, "tensor"),
    (optim.AdamH, PSI(), WHOLE, "tensor"),
    (optim.HypersphericalDescent, PSI(), Rows(), "rows"),
    (optim.HypersphericalDescent, PSI(), WHOLE, "tensor"),
    (optim.ObliqueSGD, Sphere(), Rows(), "rows"),
    (optim.ObliqueAdam, Sphere(), Rows(), "rows"),
    (optim.ManifoldMuon, Stiefel(), Rows.whole(columns=0), "tensor"),
    (optim.SPEL, Stiefel(), Rows.whole(columns=0), "tensor"),
    (optim.SSO, SpectralSphere(), Rows(), "tensor"),
    (optim.Scion, Euclidean(2), Rows(), "–"),
    (optim.Nero, CenteredSphere(), Rows(), "rows"),
    (optim.Rotational, PSI(), Rows(), "rows"),
    (optim.PSIMuon, PSI(), Rows(), "rows"),
]
"""Each with the manifold and the rows that it is for, and what it keeps: ``"rows"``, ``"tensor"`` or neither."""


def curve(make, manifold, rows, scale):
    """The losses of a run from weights times `scale`, a number or one per row."""
    torch.manual_seed(0)
    inputs, target = torch.randn(64, INPUTS, dtype=torch.float64), torch.randn(64, ROWS, dtype=torch.float64)
    layer = nn.Linear(INPUTS, ROWS, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.mul_(scale)
    group = {"params": [layer.weight], "manifold": manifold, "rows": rows}
    if not isinstance(manifold, Euclidean | PSI):
        with torch.no_grad():
            layout = rows.layout(layer.weight, manifold.event_ndim)
            layout.write(layer.weight, manifold.nearest(layout.split(layer.weight)))
    optimizer = make([group], **({"lr": 0.1} if make is optim.RiemannianSGD else {}))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        unit = layer.weight / layer.weight.norm(dim=1, keepdim=True)
        loss = ((inputs @ unit.mT).tanh() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def differences(make, manifold, rows):
    """The largest relative differences of the loss curves: with rescaled rows, with a rescaled tensor."""
    plain = curve(make, manifold, rows, 1.0)
    scales = (torch.logspace(-2, 2, ROWS, dtype=torch.float64).unsqueeze(1), 7.0)
    return [
        float(((curve(make, manifold, rows, scale) - plain) / plain).abs().max().nan_to_num(torch.inf))
        for scale in scales
    ]


def main():
    print("| optimizer | on | rows rescaled | tensor rescaled | keeps |\n| --- | --- | --- | --- | --- |")
    for make, manifold, rows, kept in OPTIMIZERS:
        by_rows, by_tensor = differences(make, manifold, rows)
        on = f"{manifold}, {'whole' if rows.blocks == 1 else 'rows'}"
        print(f"| {make.__name__} | {on} | {by_rows:.0e} | {by_tensor:.0e} | {kept} |")


if __name__ == "__main__":
    main()
