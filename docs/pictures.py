"""The pictures of the pages on geometry; every point on a manifold is computed by `retract.manifolds`.

python docs/pictures.py            # writes docs/pictures/*.svg; a second run changes no byte
python docs/pictures.py --png DIR  # writes PNG copies to DIR as well, to look at
"""

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from retract.manifolds import PSI, Grassmann, QuotientManifold, Sphere, Stiefel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
BLUE, RED, GREEN, GREY, FAINT = "#0072B2", "#D55E00", "#009E73", "#555555", "#BBBBBB"  # Okabe & Ito
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "mathtext.fontset": "cm",
    "svg.fonttype": "path",
    "svg.hashsalt": "retract",
}


def vector(*coordinates):
    """A float64 point or tangent vector."""
    return torch.tensor(coordinates, dtype=torch.float64)


def arrow(axis, start, end, color, **options):
    """An arrow from `start` to `end`, tips in the plane."""
    style = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13}
    axis.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=style | options)


def dot(axis, at, color, text="", offset=(6, 6), **options):
    """A marked point with its name."""
    axis.plot(*at, "o", color=color, ms=6, zorder=5)
    label(axis, at, text, color, offset, **options)


def label(axis, at, text, color, offset=(0, 0), **options):
    """Text at a point, moved by `offset` pt."""
    axis.annotate(text, tuple(at), offset, textcoords="offset points", color=color, **options)


def line(axis, points, color, **options):
    """A polygonal line through `points`, (number, 2)."""
    axis.plot(points[:, 0], points[:, 1], color=color, **options)


def plain(axis, x, y):
    """Equal scales, no axes, and these limits."""
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set(xlim=x, ylim=y)


def geodesic(manifold, x, u, number=60):
    """Points of the geodesic from `x` to exp(x, u), (number, n)."""
    return manifold.geodesic(x, u, torch.linspace(0, 1, number, dtype=x.dtype).unsqueeze(-1))


def circle(manifold, radius=1.0):
    """A full turn through (radius, 0)."""
    return geodesic(manifold, vector(radius, 0), vector(0, 2 * math.pi * radius), 120)


def right_angle(axis, at, along, across, size=0.13):
    """The mark of a right angle between two directions."""
    a, b = size * along / along.norm(), size * across / across.norm()
    line(axis, torch.stack([at + a, at + a + b, at + b]), GREY, lw=1)


def sphere():
    """Tangent plane, exponential and retraction on the unit sphere, seen from outside."""
    manifold, pole = Sphere(), vector(0, 0, 1)
    eye = manifold.nearest(vector(0.35, -1.0, 0.28))
    up = manifold.nearest(manifold.project(eye, pole))
    view = torch.stack([torch.linalg.cross(up, eye), up], -1)

    figure, axis = plt.subplots(figsize=(6, 4.4))
    line(axis, circle(manifold), GREY, lw=1.2)
    full_turn = geodesic(manifold, vector(1, 0, 0), vector(0, 2 * math.pi, 0), 90)
    rings = [math.cos(a) * full_turn + math.sin(a) * pole for a in map(math.radians, range(-60, 90, 30))]
    easts = [vector(math.cos(a), math.sin(a), 0) for a in map(math.radians, range(0, 360, 30))]
    rings += [geodesic(manifold, -pole, math.pi * east, 45) for east in easts]
    for ring in rings:  # parallels and meridians, where they lie in front
        line(axis, torch.where((ring @ eye > 0).unsqueeze(-1), ring @ view, math.nan), FAINT, lw=0.7)

    x = manifold.nearest(vector(-0.42, -0.5, 0.85))
    along = manifold.nearest(manifold.project(x, vector(1, -0.05, 0)))
    across = manifold.nearest(manifold.project(along, manifold.project(x, vector(0, 1, 0))))
    u = 1.2 * along
    corners = [x + a * along + b * across for a, b in ((-0.6, -0.55), (1.5, -0.55), (1.5, 0.55), (-0.6, 0.55))]
    plane = torch.stack(corners) @ view
    axis.fill(plane[:, 0], plane[:, 1], facecolor=BLUE, alpha=0.12, edgecolor=BLUE, lw=1, zorder=2)
    target, moved = manifold.exp(x, u) @ view, manifold.retract(x, u) @ view
    line(axis, geodesic(manifold, x, u) @ view, RED, lw=2.5, zorder=3)
    line(axis, torch.stack([x + u, 0 * x]) @ view, GREEN, lw=1.5, ls="--", zorder=3)
    arrow(axis, x @ view, (x + u) @ view, BLUE)
    dot(axis, 0 * x @ view, GREY, "$0$", (-14, -4))
    dot(axis, x @ view, "black", "$x$", (-15, -4))
    dot(axis, target, RED, r"$\mathrm{Exp}_x(u)$", (-4, -20))
    dot(axis, moved, GREEN, r"$R_x(u)$", (-55, -10))
    label(axis, (x + 0.5 * u) @ view, "$u$", BLUE, (0, 6))
    label(axis, (x + u) @ view, "$x + u$", BLUE, (2, 7))
    label(axis, plane[0], r"$T_x S$", BLUE, (0, 16))
    plain(axis, (-1.25, 1.2), (-1.05, 1.32))
    return figure


def psi():
    """Fibres and horizontal lifts; the straight step of the retraction and the arc of the exponential."""
    manifold, w, a = PSI(), vector(1.5, 0.6), 1.65
    u = manifold.project(w, vector(0, 1))
    u = 0.5 * u / manifold.norm(w, u)
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.7))

    axis = axes[0]
    for ray in geodesic(manifold, vector(4, 0), vector(0, 4 * 2 * math.pi), 25):
        line(axis, torch.stack([0.02 * ray, ray]), FAINT, lw=0.8)
    line(axis, circle(manifold), GREY, lw=1.5)
    line(axis, torch.stack([0.03 * w, 4 * w]), "black", lw=1.5)
    line(axis, torch.stack([0.03 * (w + u), 4 * (w + u)]), BLUE, lw=1, ls=":")
    for factor, name, lift in ((1, "$w$", r"$\xi$"), (a, r"$a\,w$", r"$a\,\xi$")):
        point, tangent = manifold.act(factor, w), manifold.act(factor, u)
        arrow(axis, point, point + tangent, BLUE)
        right_angle(axis, point, -w, u)
        dot(axis, point, "black", name, (5, -14))
        label(axis, point + 0.55 * tangent, lift, BLUE, (5, 2))
    dot(axis, manifold.canonical(w), GREY, "$v$", (4, -15))
    white = {"fc": "white", "ec": "none", "pad": 1}
    label(axis, (0, -1.24), "unit circle: the quotient", GREY, ha="center", fontsize=11, bbox=white)
    axis.plot(0, 0, "o", ms=5, mfc="white", mec=GREY)
    axis.set_title("one fibre, one point", fontsize=12)
    plain(axis, (-1.3, 3.0), (-1.5, 2.6))

    axis = axes[1]
    w = vector(1.5, 0)
    u = 1.15 * vector(0, 1.5)
    target, moved = manifold.exp(w, u), manifold.retract(w, u)
    for end, color in ((w, "black"), (moved, GREEN), (target, RED)):
        line(axis, torch.stack([0 * end, 2.35 * manifold.canonical(end)]), color, lw=1, ls=":")
    line(axis, geodesic(manifold, w, u), RED, lw=2.5)
    arrow(axis, w, moved, GREEN)
    for radius, end, color in ((0.45, u, RED), (0.75, manifold.log(w, moved), GREEN)):
        scale = radius / manifold.radius(w)
        line(axis, geodesic(manifold, manifold.act(scale, w), manifold.act(scale, end), 30), color, lw=1.3)
    right_angle(axis, w, -w, u)
    dot(axis, w, "black", "$w$", (6, -13))
    dot(axis, moved, GREEN, r"$w + \xi$", (7, -2))
    dot(axis, target, RED, r"$\mathrm{Exp}_w(\xi)$", (-8, 4), ha="right")
    label(axis, (0.22, 0.55), r"$\theta$", RED, ha="right")
    label(axis, (0.8, 0.17), r"$\mathrm{atan}\,\theta$", GREEN)
    axis.plot(0, 0, "o", ms=5, mfc="white", mec=GREY)
    axis.set_title("retraction and exponential", fontsize=12)
    plain(axis, (-0.75, 2.45), (-0.5, 2.55))
    figure.tight_layout(w_pad=1)
    return figure


def retraction():
    """How far a step turns a point, and how the retractions part from the geodesic."""
    manifold = PSI()
    w, angles = vector(1.0, 0.0), torch.linspace(0, math.pi, 60, dtype=torch.float64)
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.5))

    axis = axes[0]
    steps = angles.unsqueeze(-1) * vector(0.0, 1.0)
    start = w.expand_as(steps)
    axis.plot(angles, manifold.dist(start, manifold.exp(start, steps)).squeeze(-1), color=RED, lw=2)
    axis.plot(angles, manifold.dist(start, manifold.retract(start, steps)).squeeze(-1), color=GREEN, lw=2)
    axis.axhline(math.pi / 2, color=FAINT, lw=1, ls="--")
    label(axis, (2.3, 2.45), "Exp", RED, ha="right")
    label(axis, (3.14, 0.72), r"retraction, $\mathrm{atan}\,\theta$", GREEN, ha="right")
    ticks = {0: "0", math.pi / 2: r"$\pi/2$", math.pi: r"$\pi$"}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.set(xlabel=r"$\theta = \|\xi\| / \|w\|$", ylabel="angle turned")

    axis = axes[1]
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, -0.3, 8, dtype=torch.float64)
    cases = ((Stiefel(), (6, 3), BLUE, "s", "Stiefel, QR"), (Grassmann(2), (6, 2), RED, "^", "Grassmann(2), polar"))
    for case, shape, color, marker, name in (*cases, (PSI(), (6,), GREEN, "o", "PSI and sphere")):
        x = case.random_point(*shape, generator=generator, dtype=torch.float64)
        x = case.canonical(x) if isinstance(case, PSI) else x
        u = case.random_tangent(x, generator=generator)
        u = u / case.norm(x, u)
        gaps = []
        for t in sizes:
            y, target = case.retract(x, t * u), case.exp(x, t * u)
            gaps.append(float(((case.align(target, y) if isinstance(case, QuotientManifold) else y) - target).norm()))
        axis.loglog(sizes, gaps, color=color, marker=marker, ms=5, lw=1.5, label=name)
    label(axis, (5e-3, 4e-5), "order 2", BLUE, ha="right")
    label(axis, (1.5e-2, 4e-9), "order 3", GREEN)
    axis.set(xlabel=r"$\|\xi\|$", ylabel="distance to Exp")
    axis.legend(frameon=False, fontsize=10, loc="upper left", borderaxespad=0, handlelength=1.4)
    axis.set_ylim(top=40)
    axis.minorticks_off()
    figure.tight_layout(w_pad=2)
    return figure


def grassmann():
    """Lines, and beside them the rays of PSI: what is one point, and how far two points are apart."""
    x, y = (Sphere().exp(vector(1, 0), vector(0, math.radians(angle))) for angle in (25, 140))
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.7))
    for axis, manifold, title in zip(axes, (Grassmann(1), PSI()), ("Grassmann(1): lines", "PSI: rays"), strict=True):
        line(axis, circle(Sphere()), GREY, lw=1.2)
        for point, color, name in ((x, BLUE, "x"), (y, RED, "y")):
            whole = bool(manifold.same_point(point, -point))
            line(axis, torch.stack([-1.4 * point if whole else 0.03 * point, 1.4 * point]), color, lw=1.5)
            axis.plot(*-point, "o", ms=6, color=color, mfc=color if whole else "white", zorder=5)
            dot(axis, point, color)
            turn = 9 if name == "y" else -9  # beside the line
            beside = 1.2 * Sphere().exp(point, math.radians(turn) * vector(-point[1], point[0]))
            label(axis, beside, f"${name}$", color, ha="center", va="center")
            label(axis, -beside, f"$-{name}$", color, ha="center", va="center")
        log = manifold.log(x, y)
        line(axis, geodesic(manifold, x, log), GREEN, lw=4, alpha=0.8)
        angle = math.degrees(manifold.dist(x, y))
        label(axis, 0.76 * manifold.exp(x, 0.5 * log), f"{angle:.0f}°", GREEN, ha="center", va="center")
        axis.plot(0, 0, "o", ms=5, mfc="white", mec=GREY)
        axis.set_title(title, fontsize=12)
        plain(axis, (-1.45, 1.45), (-1.15, 1.15))
    figure.tight_layout(w_pad=1)
    return figure


def moments():
    """Differences of the moments of both sides of two pairs of weights of an attention layer with four heads."""
    generator = torch.Generator().manual_seed(0)
    d, heads = 16, 4
    weights = [torch.randn(d, d, generator=generator, dtype=torch.float64) / 4 for _ in range(4)]
    query, key, value, out = (w.requires_grad_() for w in weights)
    x = torch.randn(3, 5, d, generator=generator, dtype=torch.float64)
    q, k, v = (torch.unflatten(x @ w.T, -1, (heads, -1)).transpose(1, 2) for w in (query, key, value))
    y = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2) @ out.T
    loss = (y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()
    grads = torch.autograd.grad(loss, weights)
    (dq, dk, dv, do), (query, key, value, out) = grads, (w.detach() for w in weights)
    pairs = {
        "values and outputs": (out.T @ do, value @ dv.T),
        "keys and queries": (key @ dk.T, query @ dq.T),
    }
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for axis, (title, (left, right)) in zip(axes, pairs.items(), strict=True):
        gap = (left - right.T).abs() / left.abs().max()
        image = axis.pcolormesh(gap.clamp(min=1e-17).log10(), cmap="viridis", vmin=-17, vmax=0)
        axis.set(title=title, aspect="equal", xticks=range(0, d + 1, 4), yticks=range(0, d + 1, 4))
        axis.invert_yaxis()
    figure.colorbar(image, ax=axes, label="$\\log_{10}$ of the relative difference")
    return figure


def main():
    """Draw and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--png", type=Path)
    png = parser.parse_args().png
    with plt.rc_context(STYLE):
        for draw in (sphere, psi, retraction, grassmann, moments):
            figure = draw()
            figure.savefig(PICTURES / f"{draw.__name__}.svg", metadata={"Date": None}, bbox_inches="tight")
            if png:
                figure.savefig(png / f"{draw.__name__}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)


if __name__ == "__main__":
    main()
