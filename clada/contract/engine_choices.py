"""What can be chosen of an engine, by name: apart from what builds it, so that help needs nothing else."""

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
RUNTIMES = (TENSORRT, TENSORRT_RTX)

PLUGINS, BODIES = "plugins", "bodies"
KERNELS = ("auto", PLUGINS, BODIES)
