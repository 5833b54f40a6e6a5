"""Checks and times the CUDA kernels on this machine's card; needs torch and nvcc, and nothing of ours installed."""
