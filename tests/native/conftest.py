"""These tests call the kernels without a framework, from a library that `make test-native` builds with sanitizers."""

import os

import pytest


def pytest_configure() -> None:
    if not os.environ.get("CLADA_KERNELS_LIBRARY"):
        pytest.exit("CLADA_KERNELS_LIBRARY is not set; run `make test-native`", returncode=2)
