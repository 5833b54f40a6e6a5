"""Execution of a graph: in ONNX Runtime on CPUs and on CUDA, with a KV cache that grows or is written in place."""
