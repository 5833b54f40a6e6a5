"""These tests call the kernels without a framework, from libraries that `make test-native` builds with sanitizers."""

import os

import pytest

LIBRARIES = ("CLADA_KERNELS_LIBRARY", "CLADA_CUDA_EMULATION_LIBRARY", "CLADA_CUDA_SAMPLES_LIBRARY")


def pytest_configure() -> None:
    for name in LIBRARIES:
        if not os.environ.get(name):
            pytest.exit(f"{name} is not set; run `make test-native`", returncode=2)
