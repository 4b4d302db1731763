"""Faults of the algebra of a row, one per formula and more. `test_mutants.py` says what becomes of them."""

from mutant import Mutant

ALGEBRA = "optim/kernels/algebra.py"
PATHS = "tests/optim/test_paths.py::test_paths_agree"
MUTANTS = [
    Mutant(
        "a held norm is not taken up again",
        ALGEBRA,
        'where((held >= 0) & (ratio < float("inf")) & (r > tiny), ratio, s)',
        "s",
        "tests/optim/test_algebra.py::test_held_norms",
    ),
    Mutant(
        "free norms are not brought back",
        ALGEBRA,
        "s = where(still, s, power_below(r))",
        "s = where(still, s, s)",
        "tests/optim/test_edges.py::test_rows_outside_the_band_come_back",
    ),
    Mutant(
        "the metric of PSI is forgotten in lengths",
        ALGEBRA,
        "            length = length * r\n",
        "            length = length * 1.0\n",
        f"{PATHS}[PSI()-adam-foreach]",
    ),
    Mutant(
        "clipping shortens the length alone",
        ALGEBRA,
        "f, length = f * shrink, length * shrink",
        "f, length = f, length * shrink",
        f"{PATHS}[Sphere()-heavy-ball-foreach]",
    ),
    Mutant(
        "epsilon inside the root is added outside",
        ALGEBRA,
        "along = -rate * correction / sqrt(square + eps)",
        "along = -rate * correction / (sqrt(square) + eps)",
        "tests/optim/test_algebra.py::test_adam[True]",
    ),
    Mutant(
        "the gradient keeps its normal part",
        ALGEBRA,
        "        vx, ux = -vg * xg, -ug * xg\n",
        "        vx, ux = -vg * xg, -ug * xg * 0.5\n",
        f"{PATHS}[Sphere()-nesterov-fused]",
    ),
    Mutant(
        "the angle of an exponential on PSI is taken in the ambient space",
        ALGEBRA,
        "            theta = theta / r\n",
        "            theta = theta * 1.0\n",
        f"{PATHS}[PSI()-plain-foreach]",
    ),
    Mutant(
        "a row that does not move is normalised",
        ALGEBRA,
        "        moved = uu > 0\n",
        "        moved = uu >= 0\n",
        "tests/optim/test_still.py::test_nothing_moves[sgd-Sphere()-torch.float32-float]",
    ),
    Mutant(
        "a projected vector keeps half of its normal part",
        ALGEBRA,
        "        t_x, t_u = -part * k_x, -part * k_u\n    if C.parallel",
        "        t_x, t_u = -0.5 * part * k_x, -part * k_u\n    if C.parallel",
        f"{PATHS}[Grassmann(1)-velocity-foreach]",
    ),
    Mutant(
        "parallel transport along an exponential forgets the versine",
        ALGEBRA,
        "part * 0.5 * half * half",
        "part * half * half",
        f"{PATHS}[PSI()-velocity-fused]",
    ),
    Mutant(
        "lines are carried as points of the sphere",
        ALGEBRA,
        "phi = where(yx < 0, full_like(xx, -1.0), phi)",
        "phi = where(yx < 0, full_like(xx, 1.0), phi)",
        "tests/optim/test_algebra.py::test_lines_have_two_representatives",
    ),
    Mutant(
        "0/0 at the antipode in the algebra of a row",
        ALGEBRA,
        "antipodal = beside <= rounding * metric",
        "antipodal = beside < -metric",
        "tests/optim/test_edges.py::test_a_step_to_the_antipode[torch.float32-fused-manifold]",
    ),
    Mutant(
        "the stored vector is not rescaled with its row",
        ALGEBRA,
        "    kept, vg, ug = keep * s, take * f, ahead * f\n",
        "    kept, vg, ug = keep + 0.0 * s, take * f, ahead * f\n",
        f"{PATHS}[PSI()-velocity-foreach]",
    ),
    Mutant(
        "the step forgets the vector in front of the gradient",
        ALGEBRA,
        "y_x, y_g, y_v = k_x + k_u * (ux + along * vx), k_u * (ug + along * vg), k_u * along * kept",
        "y_x, y_g, y_v = k_x + k_u * (ux + along * vx), k_u * ug, k_u * along * kept",
        f"{PATHS}[PSI()-heavy-ball-fused]",
    ),
    Mutant(
        "a row whose gradient is almost normal is left beside the sphere",
        "optim/kernels/numba_rows.py",
        "if C.unit and abs(ux) + abs(along * vx) > ROUGH and uu > 0:",
        "if False:",
        "tests/optim/test_edges.py::test_gradients_that_are_almost_normal[Sphere()]",
    ),
    Mutant(
        "a rule's coefficients are those of the first point",
        "optim/kernels/numba_rows.py",
        "given[4 * row + 1], given[4 * row + 2]",
        "given[1], given[4 * row + 2]",
        "tests/optim/test_own_rules.py::test_every_path_takes_them[PSI()-RMSprop-hold]",
    ),
    Mutant(
        "transport beside the antipode cancels",
        "manifolds/spherical.py",
        "share = torch.where(share > _FACING, share, 0.5 * numerics.dot(middle, middle, 1) / scale)",
        "share = torch.where(share > _FACING, share, share)",
        "tests/optim/test_edges.py::test_transport_beside_the_antipode_is_isometric[Sphere()]",
    ),
]
