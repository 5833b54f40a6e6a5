"""A causal LM made sparse: which families there are, what is swapped in them, and what steers it."""
