"""Faults of norm geometry, several of them found in public code, for `mutants`."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "Muon on Stiefel does not project the average",
        "optim/muon.py",
        'options = {"momentum_form": "ema", "tangent": "step", "transport": "none", **options}\n        options = {"shape": "spectral", "motion": "polar"',
        'options = {"momentum_form": "ema", "tangent": "none", "transport": "none", **options}\n        options = {"shape": "spectral", "motion": "polar"',
        "tests/optim/test_norm_presets.py::test_spel[True]",
    ),
    Mutant(
        "the second moment is divided by 1 − β₂ᵗ outside of the root",
        "optim/rules.py",
        "(1.0 - beta2**step) ** 0.5, options",
        "(1.0 - beta2**step), options",
        "tests/optim/test_norm_presets.py::test_oblique_adam",
    ),
    Mutant(
        "the norm of a matrix is taken over the axis of experts too",
        "optim/msign.py",
        "    size = numerics.norm(x, 2)\n",
        "    size = numerics.norm(x, 3)\n",
        "tests/optim/test_shapes.py::test_iterations_are_what_polynomials_of_singular_values_say[shape3]",
    ),
    Mutant(
        "Nesterov's average is written into the gradient",
        "optim/update.py",
        "(a, False) if number and factor == 1 else (a * factor, True)",
        "(a, True) if number and factor == 1 else (a.mul_(factor), True)",
        "tests/optim/test_norm_presets.py::test_gradients_are_not_written_to",
    ),
    Mutant(
        "a hyperball is returned to at the next step only",
        "optim/update.py",
        "return _held(manifold, y, memory, options, late) if late or shape is not None else y",
        "return y",
        "tests/optim/test_norm_presets.py::test_muon_h[True]",
    ),
    Mutant(
        "a shaped step is not lifted to the size of the point",
        "optim/shapes.py",
        'return a * (size * scale * options["lr"])',
        'return a * (scale * options["lr"])',
        "tests/optim/test_norm_presets.py::test_muon_h[True]",
    ),
    Mutant(
        "an average of gradients takes the first one whole",
        "optim/rules.py",
        "return Coefficients(rho, 1.0 - rho, -lr * along, -lr * ahead)",
        "return Coefficients(rho, 1.0 if memory.fresh else 1.0 - rho, -lr * along, -lr * ahead)",
        "tests/optim/test_norm_presets.py::test_torchs_muon",
    ),
    Mutant(
        "decoupled decay follows the step",
        "optim/update.py",
        'x = x * (1.0 - options["lr"] * options["weight_decay"])',
        'x = x * (1.0 - options["weight_decay"])',
        "tests/optim/test_norm_presets.py::test_scion[shape0]",
    ),
    Mutant(
        "rows of a matrix that is cut across processes are stepped apart",
        "optim/execution/sharded.py",
        "    if coupled:\n        return GatheredPoints(points)\n",
        "",
        "tests/stacks/test_sharded_shapes.py::test_two_processes_step_as_one[torch.float64-1e-10]",
    ),
    Mutant(
        "the smaller side is not multiplied anew",
        "optim/msign.py",
        "            gram = torch.bmm(torch.bmm(factor, gram), factor)\n",
        "            gram = torch.bmm(factor, gram)\n",
        "tests/optim/test_shapes.py::test_iterations_are_what_polynomials_of_singular_values_say[shape1]",
    ),
    Mutant(
        "the sign of NaN is 0",
        "optim/shapes.py",
        "return torch.where(a.isnan(), a, a.sign())",
        "return a.sign()",
        "tests/optim/test_shapes.py::test_zero_gradients_are_still_steps_and_others_spread[PSI()-sign]",
    ),
    Mutant(
        "a spectral sphere is never returned to",
        "manifolds/spectral_sphere.py",
        "numerics.hold_still(u, moved * (self.size(x) / _largest(moved)), moved, 2)",
        "moved",
        "tests/optim/test_norm_presets.py::test_sso[1.0-True]",
    ),
]
