"""Sparse causal LMs: the supported families, the modules replaced in them, and the state that steers those."""
