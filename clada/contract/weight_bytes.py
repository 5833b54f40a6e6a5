"""Size of the weights of which tokens read a share."""

import numpy as np

from clada.contract.manifest import Manifest, QuantizationSection
from clada.ops import OPS
from clada.ops.quantized_matrices import matrix_names


def weight_bytes(manifest: Manifest, quantization: QuantizationSection | None) -> int:
    """Size of all matrices subject to skipping, scales included where they are quantized.

    Those of the feed-forward networks where neurons are skipped, and all that a token reads where inputs are.
    """
    model = manifest.model
    if quantization is None:
        of_weight: float = model.weight_bytes
    else:
        of_weight = quantization.bits / 8 + np.dtype(np.float16).itemsize / quantization.block_size
    if manifest.inputs is not None:
        return round(sum(product.inputs * product.outputs for product in manifest.inputs.products) * of_weight)
    matrices = len(matrix_names(OPS[manifest.sparse_op]))
    return round(matrices * sum(model.neurons) * model.hidden_size * of_weight)
