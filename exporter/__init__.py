"""Exporter of Hugging Face causal LMs to CLADA artifacts: calibrate, patch, trace, verify; needs torch."""
