"""Names of the options for building engines, separate from the builder so that help imports nothing else."""

from typing import Final, Literal, get_args

TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"
TrtRuntime = Literal["tensorrt", "tensorrt-rtx"]
RUNTIMES: tuple[TrtRuntime, ...] = get_args(TrtRuntime)

PLUGINS: Final = "plugins"
BODIES: Final = "bodies"
TrtKernels = Literal["auto", "plugins", "bodies"]
TRT_KERNELS: tuple[TrtKernels, ...] = get_args(TrtKernels)
