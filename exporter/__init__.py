"""Exporter of Hugging Face causal LMs to CLADA artefacts: calibrate, patch, trace, verify; needs torch."""
