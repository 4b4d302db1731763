"""Faults of slices in psi/, for `mutants`."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "slices that nothing has confirmed",
        "psi/slices.py",
        "good, late = rescaling.unchanged(list(cuts))",
        "good, late = list(cuts), list[Cut]()",
        "tests/psi/test_slices.py::test_what_is_invariant_within_bounds_is_not_reported",
    ),
    Mutant(
        "a point that fails takes its grid along",
        "psi/slices.py",
        "alone, more = rescaling.unchanged(list(points))",
        "alone, more = list[Cut](), list[Cut]()",
        "tests/psi/test_slices.py::test_what_is_invariant_within_bounds_is_not_reported",
    ),
    Mutant(
        "slices of a point are side by side",
        "psi/slices.py",
        "divisors[: max(1, MANY // length)]",
        "divisors[:1]",
        "tests/psi/test_slices.py::test_labels[0-heads_inside]",
    ),
    Mutant(
        "a dead bias scales along with slices",
        "psi/slices.py",
        "(runs.number, len(runs.bundle.axes), runs.span)",
        "(runs.number, -len(runs.bundle.axes), runs.span)",
        "tests/psi/test_slices.py::test_labels[0-half_of_a_gate_by_units]",
    ),
    Mutant(
        "what is invariant as a whole is not cut further",
        "psi/slices.py",
        "or (share == 1 and points > search.proven[name].count)",
        "",
        "tests/psi/test_slices.py::test_labels[0-all_of_it]",
    ),
    Mutant(
        "doubling slices doubles the rest",
        "psi/leaks.py",
        "if point is None and cut.slices is None:",
        "if point is None:",
        "tests/psi/test_slices.py::test_labels[0-sections]",
    ),
    Mutant(
        "slices are declared over others",
        "psi/found.py",
        "return self.refuses_slices(f.slices)",
        "return None",
        "tests/psi/test_slices.py::test_slices_that_were_declared_by_hand_stay",
    ),
    Mutant(
        "decay of a weight is angular where some slices are invariant",
        "psi/report.py",
        "if count == math.prod(shapes[name])",
        "if count",
        "tests/psi/test_slices.py::test_decay_groups",
    ),
    Mutant(
        "a point lies in one stretch",
        "psi/slices.py",
        "for distance in distances[1:]:",
        "for distance in distances[:0]:",
        "tests/psi/test_slices.py::test_labels[0-section_side_by_side]",
    ),
]
