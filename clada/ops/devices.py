"""Names of the devices and kernel options, separate from the runtime so that help imports nothing else."""

from typing import Literal, get_args

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)
# What the FFN's weights may be held as: as the model has them, or float32 rounded to a more compact type at load.
HeldWeights = Literal["", "bfloat16"]
WEIGHTS: tuple[HeldWeights, ...] = get_args(HeldWeights)
# What runs the sparse ops in ONNX Runtime.
OrtKernels = Literal["auto", "native", "bodies"]
ORT_KERNELS: tuple[OrtKernels, ...] = get_args(OrtKernels)
