"""The chat template of a model, rendered within a budget: it is a stranger's program."""
