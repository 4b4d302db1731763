"""The rows: dot products in, linear combinations out. One algebra, and a backend for torch, for Numba and for Triton."""
