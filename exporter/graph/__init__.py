"""Graph of a patched model in ONNX: the decoder to trace, and the rewrites for ONNX Runtime."""
