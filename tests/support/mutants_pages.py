"""Faults of the pages of the studies, for `mutants`."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "runs of an earlier choice are missing at the one after it",
        "docs/studies/pages.py",
        "matched(final_runs(study, swept.method.knobs, swept.best), records)",
        "matched(final_runs(study, swept.method.knobs, swept.best), "
        '[r for r in records if tuple(r["node"]) == swept.best])',
        "tests/studies/test_studies.py::test_runs_of_an_earlier_choice_serve_the_one_after_it",
    ),
    Mutant(
        "a loss at half the rate is compared with that of other seeds",
        "docs/studies/pages.py",
        'if record["seed"] in seeds:',
        "if seeds:",
        "tests/studies/test_relu_and_resnet20.py::test_the_tables_of_resnet_20",
    ),
    Mutant(
        "differences are not paired by seed",
        "docs/studies/pages.py",
        'zip(self.of(f"test {key}"), other.of(',
        'zip(self.of(f"test {key}")[::-1], other.of(',
        "tests/studies/test_studies.py::test_the_table_has_the_numbers_of_the_runs",
    ),
    Mutant(
        "a sweep with its best value at an edge is told as one without",
        "docs/studies/pages.py",
        '" (at an edge)" * (not row.interior)',
        '""',
        "tests/studies/test_studies.py::test_a_sweep_that_ends_at_an_edge_is_told",
    ),
    Mutant(
        "a study writes over all studies of its page",
        "docs/studies/reports.py",
        'mark = f"<!-- table {name}: ',
        'mark = r"<!-- table [^ ]+: ',
        "tests/studies/test_reports.py::test_a_table_is_written_between_its_marks_and_a_second_time_alike",
    ),
    Mutant(
        "a summary calls every difference one",
        "docs/studies/summary.py",
        "if not found.excludes_zero:",
        "if found.low == found.high:",
        "tests/studies/test_reports.py::test_the_summary_says_what_the_interval_does",
    ),
    Mutant(
        "a target is the mean of the baseline",
        "docs/studies/pages.py",
        'target = max((loss for loss in base.of("loss") if not math.isnan(loss)), default=None)',
        'target = statistics.fmean(base.of("loss"))',
        "tests/studies/test_studies.py::test_a_target_is_what_all_runs_of_the_baseline_reach",
    ),
    Mutant(
        "a follow-up hides that its rate was at an edge",
        "docs/studies/pages.py",
        "swept.values, swept.interior, final",
        "swept.values, True, final",
        "tests/studies/test_relu_and_resnet20.py::test_a_rate_at_an_edge_of_the_sweep_before_is_told",
    ),
    Mutant(
        "times of steps are compared across rounds",
        "docs/studies/cost.py",
        "statistics.median(each[i] / each[0] for each in times)",
        "statistics.median(each[i] / times[0][0] for each in times)",
        "tests/studies/test_cost.py::test_times_are_relative_to_the_baseline_round_by_round",
    ),
    Mutant(
        "a follow-up is compared before it has all its seeds",
        "docs/studies/pages.py",
        "    if missing:\n        return None\n    final",
        "    if not results:\n        return None\n    final",
        "tests/studies/test_relu_and_resnet20.py::test_a_method_without_all_its_seeds_is_not_compared",
    ),
    Mutant(
        "knobs of a method are missing from the table",
        "docs/studies/pages.py",
        "any(knob in row.values for row in found.values())",
        "all(knob in row.values for row in found.values())",
        "tests/studies/test_studies.py::test_the_table_has_the_numbers_of_the_runs",
    ),
    Mutant(
        "the best loss is the largest",
        "docs/studies/pages.py",
        'Score("test loss", 4, 1)',
        'Score("test loss", 4, -1)',
        "tests/studies/test_studies.py::test_where_losses_are_compared_the_least_comes_first",
    ),
    Mutant(
        "the drift of rates is told about other centres",
        "docs/studies/runs.py",
        "return protocol.values(self.method.knobs, self.best)",
        "return protocol.values(load(self.method.name).knobs, self.best)",
        "tests/studies/test_studies.py::test_a_study_after_another_sweeps_the_rate_about_what_was_chosen_there",
    ),
    Mutant(
        "a rate that is carried over costs nothing",
        "docs/studies/pages.py",
        "more = means[centre] - means[sweep.best]",
        "more = 0.0 * means[centre]",
        "tests/studies/test_studies.py::test_a_study_after_another_sweeps_the_rate_about_what_was_chosen_there",
    ),
    Mutant(
        "a knob that is swept again is not told",
        "docs/studies/runs.py",
        "[*self.method.knobs][: len(self.best)]",
        "[*self.method.knobs][:1]",
        "tests/studies/test_odd_runs.py::test_a_study_after_another_may_sweep_every_knob",
    ),
    Mutant(
        "a method is blamed for its baseline",
        "docs/studies/summary.py",
        'return "diverged" if row.diverged else f"{base.title} diverged"',
        'return "diverged"',
        "tests/studies/test_odd_runs.py::test_a_baseline_that_diverged_has_no_target_and_is_blamed_itself",
    ),
]
