"""Runs CLADA artefacts; needs numpy, onnxruntime, tokenizers and jinja2, and no torch."""
