"""Evaluation of the cost of sparsity, on tokens that are read one by one in decode, as a user's are."""
