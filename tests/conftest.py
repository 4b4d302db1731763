"""Fixtures for the whole suite: a device, a seeded generator on it, and the seed of the test."""

import os
import zlib

# OpenMP's threads wait for each other by spinning, which on a busy machine takes a hundred times as long as the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default=os.environ.get("DEVICE") or "cpu", help="device of the tensors: cpu, cuda")


@pytest.fixture
def device(request):
    name = request.config.getoption("--device")
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(name)


@pytest.fixture(autouse=True)
def seed(request):
    """Every test draws the same numbers whatever runs before it."""
    value = zlib.crc32(request.node.name.encode())
    torch.manual_seed(value)
    return value


@pytest.fixture
def generator(seed, device):
    return torch.Generator(device).manual_seed(seed)
