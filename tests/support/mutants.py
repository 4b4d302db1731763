"""Faults that the library once had, or could have. Their tests pass as the sources are, and fail with any of them."""

import mutants_experiments
import mutants_kernels
import mutants_manifolds
import mutants_networks
import mutants_norms
import mutants_optim
import mutants_pages
import mutants_psi
import mutants_slices
import mutants_solvers
import mutants_spaces
import mutants_studies

MUTANTS = [
    *mutants_manifolds.MUTANTS,
    *mutants_kernels.MUTANTS,
    *mutants_norms.MUTANTS,
    *mutants_optim.MUTANTS,
    *mutants_psi.MUTANTS,
    *mutants_slices.MUTANTS,
    *mutants_solvers.MUTANTS,
    *mutants_spaces.MUTANTS,
    *mutants_experiments.MUTANTS,
    *mutants_networks.MUTANTS,
    *mutants_studies.MUTANTS,
    *mutants_pages.MUTANTS,
]
