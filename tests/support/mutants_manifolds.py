"""Faults of manifolds/, for `mutants`."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "a deepcopy loses its marks",
        "manifolds/records.py",
        "    for leaf, declaration, its in parts:\n",
        "    for leaf, declaration, its in parts[:0]:\n",
        "tests/geometry/test_marks.py::test_bare_parameters_are_refused[deepcopy]",
    ),
    Mutant(
        "a swapped module trains flat",
        "manifolds/declare.py",
        "if lost is not None and id(p) not in seen:",
        "if lost is not None and id(p) in seen:",
        "tests/geometry/test_marks.py::test_a_module_swapped_around_its_parameter[swapped]",
    ),
    Mutant(
        "a plain checkpoint stays off the manifold",
        "manifolds/placing.py",
        "        state_dict.update(zip(keys, targets, strict=True))\n",
        "",
        "tests/geometry/test_loads.py::test_a_plain_checkpoint_ends_on_the_manifold[the network-False]",
    ),
    Mutant(
        "a load falsifies running statistics",
        "manifolds/placing.py",
        "refuse_stale(prefix + entry.name, points, placed, state_dict.items(), _LOAD_FIRST)",
        "refuse_stale(prefix + entry.name, points, placed, (), _LOAD_FIRST)",
        "tests/geometry/test_loads.py::test_trained_statistics_refuse_a_load_that_moves_rows",
    ),
    Mutant(
        "put falsifies running statistics",
        "manifolds/declare.py",
        "refuse_stale(names[0], points, placed, model.named_buffers(), _RESET_AND_PUT)",
        "refuse_stale(names[0], points, points, model.named_buffers(), _RESET_AND_PUT)",
        "tests/geometry/test_loads.py::test_put_refuses_what_declare_refuses",
    ),
    Mutant(
        "columns of a matrix come first",
        "manifolds/rows.py",
        "rest = [*(a for a in rest if a not in columns), *columns]",
        "rest = [*columns, *(a for a in rest if a not in columns)]",
        "tests/geometry/test_rows_of_matrices.py::test_the_cut_and_back[filters of a convolution]",
    ),
    Mutant(
        "numbers per point of axes out of order",
        "manifolds/rows.py",
        "return tuple(sorted(_tuple(self.axis)))",
        "return _tuple(self.axis)",
        "tests/geometry/test_rows_of_matrices.py::test_vectors_enumerated_by_any_axes[(1, 0)-Sphere()]",
    ),
    Mutant(
        "0/0 at the antipode",
        "manifolds/spherical.py",
        "antipodal = square <= 2.0 * torch.finfo(x.dtype).eps",
        "antipodal = square < -1.0",
        "tests/updates/test_edges.py::test_a_step_to_the_antipode[torch.float32-reference-manifold]",
    ),
    Mutant(
        "lengths through squares that overflow",
        "manifolds/conformal.py",
        "        return numerics.norm(u, self.event_ndim) / self.conformal_factor(x) ** 0.5",
        "        return numerics.safe_sqrt(self.inner(x, u, u))",
        "tests/updates/test_edges.py::test_rows_of_every_norm_train_alike[adam-reference]",
    ),
    Mutant(
        "norms of float32 rows are not summed again",
        "manifolds/numerics.py",
        "    if not squares_fit(size):\n        again",
        "    if False:\n        again",
        "tests/updates/test_edges.py::test_norms_over_the_whole_range",
    ),
]
