"""Turns a Hugging Face causal LM into a CLADA artefact: calibrate, patch, trace, verify; needs torch."""
