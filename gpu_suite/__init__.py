"""Checks and times the CUDA kernels on this machine's card; needs torch, nvcc and CMake, but clada not installed."""
