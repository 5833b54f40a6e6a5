"""Checks of the GPU suite over the emulated CUDA kernels: the kernels meet the checks' tolerances."""

import os
from pathlib import Path

import pytest
import torch

from clada.benchmark.shapes import SHAPES
from clada.ops import QUANTIZED, SPARSE_FFN, SPARSE_GATED_FFN, SPARSE_LINEAR
from clada.ops.record import FLOAT_TYPES
from gpu_suite.checks import Check, checked_layers, linear_checks, prompt_checks, sample_checks
from gpu_suite.kernels import Kernels, load
from tests.gpu.test_gpu_suite import HOST


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load(Path(os.environ["CLADA_CUDA_EMULATION_LIBRARY"]), HOST)


def all_pass(checks: list[Check]) -> None:
    assert checks
    assert not [check for check in checks if not check.passed]


@pytest.mark.parametrize("op", [*QUANTIZED.values(), SPARSE_LINEAR], ids=lambda op: op.name)
def test_sample_cases(kernels, op):
    all_pass(list(sample_checks(kernels, [op])))


@pytest.mark.parametrize("op", [SPARSE_GATED_FFN, SPARSE_FFN], ids=lambda op: op.name)
@pytest.mark.parametrize("element", FLOAT_TYPES)
def test_prompts(kernels, op, element):
    """Whose products are rounded, and weights too where they were quantized."""
    for layer in checked_layers(op, SHAPES["tiny"], getattr(torch, element), "cpu"):
        all_pass(list(prompt_checks(kernels, layer)))


@pytest.mark.parametrize("element", FLOAT_TYPES)
def test_matrices(kernels, element):
    """Plain and quantized, row by row and as products."""
    all_pass(list(linear_checks(kernels, SHAPES["tiny"], getattr(torch, element))))
