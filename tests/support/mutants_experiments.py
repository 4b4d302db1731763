"""Faults of the experiments, for `mutants`."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "a pickle uses as a key what takes 2^n steps to hash",
        "docs/experiments/pickles.py",
        "    _check_keys(values[::2])\n",
        "",
        "tests/psi/test_damaged_files.py::test_pickles_made_to_do_harm[a key nested twice over]",
    ),
    Mutant(
        "a value that contains itself is handed on",
        "docs/experiments/pickles.py",
        "    _check_size(result, most)\n",
        "",
        "tests/psi/test_damaged_files.py::test_pickles_made_to_do_harm[a list that contains itself]",
    ),
    Mutant(
        "a packed file is unpacked whatever it holds",
        "psi/data.py",
        "content = stream.decompress(packed, _MOST + 1)",
        "content = stream.decompress(packed)",
        "tests/psi/test_damaged_files.py::test_damaged_idx_files[zeros without end]",
    ),
    Mutant(
        "a flipped bit in a checkpoint is not noticed",
        "docs/experiments/checkpoint.py",
        "if damaged := archive.testzip():",
        "if damaged := None:",
        "tests/psi/test_damaged_files.py::test_checkpoints_made_to_do_harm",
    ),
    Mutant(
        "an optimizer goes on from a state that is not its own",
        "docs/experiments/training.py",
        "        if place is not None:\n",
        "        if False:\n",
        "tests/psi/test_damaged_files.py::test_states_of_something_else",
    ),
    Mutant(
        "numbers of a table are cut off on a narrow screen",
        "docs/experiments/cli_shared.py",
        "table if fits(table, console) else _upright(table)",
        "table",
        "tests/psi/test_screens.py::test_no_cell_is_cut_off[toy-60]",
    ),
    Mutant(
        "the time left counts what former processes trained",
        "docs/experiments/cli_shared.py",
        'made = task.completed - task.fields.get("earlier", 0)',
        "made = task.completed",
        "tests/psi/test_screens.py::test_the_time_left_of_a_run_that_goes_on",
    ),
    Mutant(
        "a kernel is not cut into output channels, and nobody is told",
        "docs/experiments/methods.py",
        '(finding.granularity, finding.rows) != ("row", manifolds.Rows())',
        'finding.granularity == "tensor"',
        "tests/psi/test_cifar.py::test_convolutions_whose_points_are_not_rows_are_refused",
    ),
]
