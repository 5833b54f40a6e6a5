"""Tests of the kernels alone."""
