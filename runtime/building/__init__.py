"""Builds the engine of an artefact, with TensorRT or TensorRT for RTX."""
