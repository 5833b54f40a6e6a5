"""What can be chosen of how the ops are run, by name: apart from what runs them, so that help needs nothing else."""

DEVICES = ("cpu", "cuda")
# What the FFN's weights may be held as: as the model has them, or float32 rounded to a more compact type at load.
WEIGHTS = ("", "bfloat16")
