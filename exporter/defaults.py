"""Names of the choices, and their defaults, separate from the exporter so that help needs no torch."""

from clada.ops.block_quantization import BITS
from clada.ops.record import NARROW_TYPE

# Types of the weights, and of what is computed with them: no CPU of ONNX Runtime's computes in bfloat16.
COMPUTES_IN = {"float32": "float32", "float16": "float16", NARROW_TYPE: "float32"}
DTYPES = tuple(COMPUTES_IN)
# Bits a weight, by the name on the command line.
FORMATS = {f"int{bits}": bits for bits in BITS}
METHODS = ("rtn", "gptq")
BLOCK_SIZE = 32
METHOD = "rtn"
CALIBRATION_TOKENS = 2048
# Of the file that holds what was calibrated.
CALIBRATION_SUFFIX = ".safetensors"
# For each of them, with a goal of bytes, how many more are read densely: what is to come is told from those.
FURTHER = 2
# Default goals: without any goal, and for the policies that skip neurons.
BYTES = 0.7
TARGET_SPARSITY = 0.5
# The policies of a goal of bytes, which is the usual one, and of the others.
BYTES_POLICY = "price"
NEURONS_POLICY = "clada"
# Versions of ONNX's standard ops: the first whose DequantizeLinear knows blocks and 4 bits, and what is written.
MINIMUM_QUANTIZED_OPSET = 21
DEFAULT_OPSET = 20
DEFAULT_QUANTIZED_OPSET = MINIMUM_QUANTIZED_OPSET
# Options of how a checkpoint is read, which commands, ExportConfig and `load_model` have alike.
READING_OPTIONS = ("adapter", "trust_remote_code", "allow_pickle")
