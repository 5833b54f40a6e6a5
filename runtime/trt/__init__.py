"""Engines of TensorRT and TensorRT for RTX: loading and running."""
