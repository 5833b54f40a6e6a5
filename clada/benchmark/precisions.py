"""What weights a contender has, by the word that ends its name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blocks:
    """Weights quantised with one scale a block.

    Args:
        bits: Of a weight.
        block_size: Weights a scale.
    """

    bits: int
    block_size: int


FLOATS = ("float32", "bfloat16")
BLOCKS = {"int4": Blocks(4, 32), "int4-block128": Blocks(4, 128), "int8": Blocks(8, 32)}
PRECISIONS = (*FLOATS, *BLOCKS)
# A whole model's contenders: each takes the memory of one more model.
OF_MODELS = (*FLOATS, "int4")
