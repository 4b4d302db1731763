"""Faults of solvers, for `mutants`."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "inner products of pairs that were carried are those of before",
        "optim/solvers/pairs.py",
        "            self._table, self._drift = None, 0.0\n",
        "            self._drift = 0.0\n",
        "tests/optim/test_lbfgs.py::test_directions_are_those_of_the_bfgs_formula[0.2-fixed-rank3]",
    ),
    Mutant(
        "pairs on a manifold are never carried",
        "optim/solvers/pairs.py",
        "elif space.projects and self._drift <= _DRIFT * space.reach:",
        "elif space.projects:",
        "tests/optim/test_lbfgs.py::test_pairs_are_tangent_at_one_point[stiefel]",
    ),
    Mutant(
        "pairs of L-BFGS are in two tangent spaces",
        "optim/solvers/pairs.py",
        "            own = space.carried(x, u, y, own)\n",
        "",
        "tests/optim/test_lbfgs.py::test_pairs_are_tangent_at_one_point[sphere]",
    ),
    Mutant(
        "a change of the gradient is the difference of tangents at two points",
        "optim/solvers/pairs.py",
        "self.last = [stack[-2] for stack in own], [stack[-1] for stack in own]\n",
        "self.last = [stack[-2] for stack in own], gradient\n",
        "tests/optim/test_lbfgs.py::test_pairs_are_tangent_at_one_point[stiefel]",
    ),
    Mutant(
        "Euclidean dot products stand in for the metric",
        "optim/solvers/space.py",
        "                b, dot = b / m.conformal_factor(a), True\n",
        "                dot = True\n",
        "tests/optim/test_lbfgs.py::test_the_table_is_that_of_the_metric[psi]",
    ),
    Mutant(
        "solvers without transport",
        "optim/solvers/space.py",
        "            m.project(b, c) if _projects(m) else m.transport(a, along, c)\n",
        "            c\n",
        "tests/optim/test_lbfgs.py::test_pairs_are_tangent_at_one_point[fixed-rank3]",
    ),
    Mutant(
        "the last gradient of conjugate gradients stays where it was",
        "optim/solvers/algorithms.py",
        "[a[0] for a in carried], [a[1] for a in carried], here.square\n",
        "[a[0] for a in carried], here.gradient, here.square\n",
        "tests/optim/test_solver_methods.py::test_betas_are_those_of_the_papers[hager_zhang]",
    ),
    Mutant(
        "the sign of the curvature is ignored",
        "optim/solvers/trust_regions.py",
        "        curved = space.inner(here.x, d, hd)\n",
        "        curved = space.inner(here.x, d, hd).abs()\n",
        "tests/optim/test_solver_methods.py::test_steps_in_a_trust_region_lower_the_model_by_what_they_say",
    ),
    Mutant(
        "second derivatives are believed",
        "optim/solvers/trust_regions.py",
        "    if not off <= 1e-2 * size(expected) + 1e-6 * size(g):\n",
        "    if False:\n",
        "tests/optim/test_solver_methods.py::test_hessians_that_do_not_exist",
    ),
    Mutant(
        "values alone decide in a line search",
        "optim/solvers/searches.py",
        "        near = rounding > 0 and trial.f <= start.f + rounding\n",
        "        near = False\n",
        "tests/optim/test_searches.py::test_slopes_decide_where_values_are_rounded",
    ),
    Mutant(
        "the strong Wolfe search compares with the last trial from the first one on",
        "optim/solvers/searches.py",
        "(trials > 1 and trial.f",
        "(trials > 0 and trial.f",
        "tests/optim/test_searches.py::test_strong_wolfe_is_that_of_torch_on_random_waves",
    ),
    Mutant(
        "a run wanders in rounding errors",
        "optim/solvers/progress.py",
        "        if self.idle >= _IDLE:\n",
        "        if False:\n",
        "tests/optim/test_solvers.py::test_rounding_ends_a_run_with_success",
    ),
    Mutant(
        "pairs of other points are used",
        "optim/solvers/lbfgs.py",
        "        if not all(torch.equal(a.to(b), b) for a, b in zip(known, x, strict=True)):\n            return\n",
        "",
        "tests/optim/test_lbfgs.py::test_parameters_that_have_moved_start_anew",
    ),
    Mutant(
        "the pair of the last step is lost between two calls",
        "optim/solvers/lbfgs.py",
        '        if state["step"] is not None:\n',
        "        if False:\n",
        "tests/optim/test_lbfgs.py::test_it_is_torchs_in_flat_space",
    ),
]
