"""What executes the graph."""
