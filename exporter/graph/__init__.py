"""From a patched model to ONNX: the decoder that is traced, and what is rewritten for ONNX Runtime."""
