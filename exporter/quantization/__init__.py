"""Quantization of weights to 4 and 8 bits: to the nearest or by GPTQ, packed as the ops take them."""
