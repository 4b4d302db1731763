"""Kernels for rows: one algebra, bound to torch, Numba and Triton."""
