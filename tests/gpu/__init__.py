"""The GPU suite, and the CUDA kernels as nvcc compiles them."""
