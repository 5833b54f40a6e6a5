"""The ways to run a graph: in ONNX Runtime on CPUs and on CUDA, with a cache that grows or is written in place."""
