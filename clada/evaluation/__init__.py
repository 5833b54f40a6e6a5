"""Measures what sparsity costs, on tokens that are read one by one in decode, as a user's are."""
