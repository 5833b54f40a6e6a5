"""What sparsity costs."""
