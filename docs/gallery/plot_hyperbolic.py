r"""
A tree in the hyperbolic plane
==============================

A binary tree has :math:`2^k` nodes at depth :math:`k`, and a circle in the plane grows only linearly with its radius; in the
hyperbolic plane it grows exponentially, and trees fit (Sarkar 2011). ``RiemannianAdam`` embeds one tree in both, in geoopt's
``PoincareBall`` through ``from_geoopt`` and in ``Euclidean(1)``.
"""

import geoopt
import torch
from matplotlib import pyplot as plt
from retract.manifolds import Euclidean, from_geoopt
from retract.optim import RiemannianAdam

plt.style.use("tableau-colorblind10")

# %%
# The tree
# --------
#
# The balanced binary tree of depth 5 with its path lengths :math:`t_{ij}`, by the algorithm of Floyd and Warshall. Children of
# node :math:`i` are :math:`2i + 1` and :math:`2i + 2`.

depth = 5
nodes = 2 ** (depth + 1) - 1
children = torch.arange(1, nodes)
parents = (children - 1) // 2
paths = torch.full((nodes, nodes), torch.inf, dtype=torch.float64).fill_diagonal_(0)
paths[children, parents] = paths[parents, children] = 1
for k in range(nodes):
    paths = torch.minimum(paths, paths[:, k : k + 1] + paths[k])

# %%
# The embedding
# -------------
#
# Points :math:`z_i` minimize the mean of :math:`(d(z_i, z_j) / \ell t_{ij} - 1)^2` over all pairs, where :math:`\ell` is the
# length wanted of an edge. On the plane it only sets the unit; in the hyperbolic plane of curvature −1 it says how much the
# curvature bends an edge: :math:`\ell \to 0` is the plane again. The tree is grown level by level, each child starting near
# its parent, which keeps clear of local minima in which branches cross. A step of Adam has about the length of its learning
# rate in the metric, so the rate is set in proportion to :math:`\ell`.


def embed(manifold, distance, edge, steps=100):
    generator = torch.Generator().manual_seed(0)
    z = torch.zeros(1, 2, dtype=torch.float64)
    for level in range(1, depth + 1):
        count = 2 ** (level + 1) - 1
        start = z[parents[len(z) - 1 : count - 1]]
        noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        born = manifold.retract(start, 0.1 * edge * noise / manifold.norm(start, noise))
        z = torch.nn.Parameter(torch.cat([z, born]))
        optimizer = RiemannianAdam([{"params": [z], "manifold": manifold}], lr=0.3 * edge)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        i, j = torch.triu_indices(count, count, 1)
        for _ in range(steps):
            optimizer.zero_grad()
            (distance(z[i], z[j]) / (edge * paths[i, j]) - 1).square().mean().backward()
            optimizer.step()
            schedule.step()
        z = z.detach()
    return z


# %%
# Two figures of merit: the average distortion, the mean of :math:`|d(z_i, z_j) / \ell t_{ij} - 1|`, and the mean average
# precision (MAP) with which a node's nearest points are its neighbours in the tree (Nickel and Kiela 2017).


def merit(z, distance, edge):
    d = distance(z.unsqueeze(1), z.unsqueeze(0))
    i, j = torch.triu_indices(nodes, nodes, 1)
    distortion = (d[i, j] / (edge * paths[i, j]) - 1).abs().mean().item()
    nearest = d.fill_diagonal_(torch.inf).argsort(1)[:, :-1]
    hit = (paths == 1).gather(1, nearest)
    precision = hit.cumsum(1) / torch.arange(1, nodes, dtype=torch.float64)
    return distortion, ((precision * hit).sum(1) / hit.sum(1)).mean().item()


ball = geoopt.PoincareBall().double()
edges = (0.25, 0.5, 1.0, 1.5)
embedded = {edge: embed(from_geoopt(ball), ball.dist, edge) for edge in edges}
merits = {edge: merit(embedded[edge], ball.dist, edge) for edge in edges}


def straight(x, y):
    return (x - y).norm(dim=-1)


flat = embed(Euclidean(1), straight, 1.0)
flat_merit = merit(flat, straight, 1.0)

# %%
# geoopt 0.5.1 clamps the argument of its artanh at 1 − 1e-7, so that no distance exceeds 16.8: at depth 5, the diameter being
# :math:`10\,\ell`, this leaves room up to :math:`\ell = 1.6`.

far = torch.tensor([[0.999999999, 0.0]], dtype=torch.float64)
longest = ball.dist(far, -far).item()

# %%
# What to look at: the edges on the left all have nearly the same length, somewhat above :math:`\ell`, because a path that
# turns is shorter than the sum of its edges. On the right other nodes come nearer than neighbours in the
# tree, which the MAP below counts.

figure, panels = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
t = torch.linspace(0, 1, 30, dtype=torch.float64)
z = embedded[1.0]
for parent, child in zip(parents.tolist(), children.tolist(), strict=True):
    curve = ball.geodesic(t.unsqueeze(1), z[parent], z[child])
    panels[0].plot(*curve.T, color="C3", linewidth=0.9)
    panels[1].plot(*flat[[parent, child]].T, color="C3", linewidth=0.9)
panels[0].add_patch(plt.Circle((0, 0), 1, fill=False, linewidth=0.8))
for panel, points, title in zip(panels, (z, flat), ("Poincaré disc, ℓ = 1", "plane"), strict=True):
    level = torch.log2(torch.arange(1, nodes + 1)).floor()
    panel.scatter(*points.T, c=level, s=18, cmap="cividis", zorder=3)
    panel.set(title=title, aspect="equal", xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
plt.show()

# %%
# The average distortion falls from the plane's as edges grow longer than the radius of curvature, which is 1.

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(edges, [merits[edge][0] for edge in edges], "o-", label="hyperbolic plane")
axis.axhline(flat_merit[0], color="C1", linestyle="--", label="plane")
axis.set(xlabel="length of an edge ℓ [radius of curvature]", ylabel="average distortion", ylim=(0, None))
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %%

for edge, (distortion, precision) in merits.items():
    print(f"hyperbolic plane, edge {edge:4}: average distortion {distortion:.3f}, MAP {precision:.3f}")
print(f"plane:                       average distortion {flat_merit[0]:.3f}, MAP {flat_merit[1]:.3f}")
print(f"longest distance in geoopt's ball: {longest:.1f}")

lengths = ball.dist(z[parents], z[children])
print(f"edges in the disc, ℓ = 1: {lengths.min():.2f} to {lengths.max():.2f}")

distortions = [distortion for distortion, _ in merits.values()]
assert distortions == sorted(distortions, reverse=True)
assert distortions[-1] < 0.03
assert flat_merit[0] > max(0.17, *distortions)
assert all(merits[edge][1] == 1 for edge in edges if edge >= 0.5)
assert flat_merit[1] < 0.7
assert 1 < lengths.min() <= lengths.max() < 1.15 * lengths.min()
assert 16.5 < longest < 17
