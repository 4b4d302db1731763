"""The Triton row kernels: what triton_rows.py tests, in a process of its own, and that the compiler takes them.

Triton decides at its import whether kernels are interpreted, for the whole process.
"""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

TESTS = [pathlib.Path(__file__).with_name(name) for name in ("triton_rows.py", "triton_rows_hyperbolic.py")]
COMPILE = """
import sys
import triton
import triton.language as tl
from retract.optim.kernels import triton_rows
from retract.optim.kernels.launch import Choices
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

dtype, names = getattr(tl, sys.argv[1]), sys.argv[2].split()
constants = {
    "D": dtype, "REAL": tl.float64 if dtype == tl.float64 else tl.float32, "C": Choices(*(name in names for name in Choices._fields)),
    "STRIPS": triton_rows.STRIPS, "LANES": triton_rows.LANES,
    "PIECE": triton_rows.PIECE, "TILE": triton_rows.STRIPS * triton_rows.LANES, "BLOCK": 1024, "AGAIN": True,
}
pointers = {"buffer": "*i64", "sums": "*fp64", "before": "*fp64", "coefficients": "*fp64"}
for name in ("_rows", "sum_pieces", "solve_rows", "move_pieces"):
    kernel = getattr(triton_rows, name)
    signature = {each: "constexpr" if each in constants else pointers.get(each, "*i32") for each in kernel.arg_names}
    its = {each: value for each, value in constants.items() if each in signature}
    source = ASTSource(fn=kernel, signature=signature, constexprs=its)
    options = {"num_warps": triton_rows.WARPS, "enable_fp_fusion": True, "maxnreg": 128}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert name == "solve_rows" or ("ld.global.v2.b64" if dtype == tl.float64 else "ld.global.v4") in ptx, f"{name} does not load 16 bytes at once"
"""
COMPILE_HYPERBOLIC = """
import sys
import triton
from retract.optim.kernels import triton_hyperbolic
from retract.optim.kernels.launch import HyperbolicChoices
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

names = sys.argv[1].split()
constants = {"ROWS": 128, "BLOCK": 8, "C": HyperbolicChoices(*(name in names for name in HyperbolicChoices._fields))}
kernel = triton_hyperbolic._matrix
source = ASTSource(fn=kernel, signature={"buffer": "*i64", "matrix": "i32", **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
assert "ld.global" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""
WITHOUT_A_COMPILER = """
import torch
from retract.manifolds import PSI
from retract.optim.execution.dispatch import kernel_for
from retract.optim.rules import Momentum
print(kernel_for(PSI(), torch.float32, torch.device("cuda"), Momentum()))
"""


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=TESTS[0].parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(device, *options):
    interpret = {} if device.type == "cuda" else {"TRITON_INTERPRET": "1"}
    run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", str(device), *options, *map(str, TESTS), **interpret
    )


def test_the_kernels_are_the_reference(device):
    run_tests(device)


def test_without_a_compiler_for_its_launchers():
    """Which Triton would miss at its first launch, when it is too late for another path."""
    found = run("-c", WITHOUT_A_COMPILER, PATH="", CC="", TRITON_INTERPRET="0")
    assert "triton cannot be imported (it needs a C compiler" in found


@pytest.mark.long
def test_every_rule_too(device):
    run_tests(device, "-m", "long")


@pytest.mark.parametrize(
    ("dtype", "choices"),
    [
        ("float32", "hold store_radius moving additive"),
        pytest.param("bfloat16", "unit lines exp adam inside parallel clip moving", marks=pytest.mark.long),
        pytest.param("float64", "exp adam project free clip moving", marks=pytest.mark.long),
    ],
)
def test_the_compiler_takes_the_kernels(dtype, choices, tmp_path):
    """Which needs no GPU."""
    if sys.platform != "linux":
        pytest.skip("Triton's compiler is for Linux")
    run("-c", COMPILE, dtype, choices, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    "choices",
    ["parallel moving", pytest.param("sheet exp adam inside parallel clip moving", marks=pytest.mark.long)],
)
def test_the_compiler_takes_the_kernels_of_hyperbolic_rows(choices, tmp_path):
    if sys.platform != "linux":
        pytest.skip("Triton's compiler is for Linux")
    run("-c", COMPILE_HYPERBOLIC, choices, TRITON_CACHE_DIR=str(tmp_path))


def test_the_check_for_a_gpu_says_that_there_is_none():
    page = run(str(TESTS[0].parents[2] / "docs/benchmarks/gpu_check.py"), CUDA_VISIBLE_DEVICES="")
    assert page == "No GPU here: nothing checked, nothing timed.\n"
