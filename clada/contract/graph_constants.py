"""Float32 constants of an ONNX file, wherever they are stored, read without the onnx package.

Unlike that package's own reader this one takes a file of weights that is a link, as in the cache of Hugging Face's hub;
that it is the right file is what hashes are for.
"""

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clada.contract.onnx_wire import Constant, constants_of

Floats = npt.NDArray[np.float32]

_FLOAT32 = 1  # TensorProto's number of the type


class GraphConstants:
    """Initializers of a graph, by name.

    Args:
        content: The ONNX file.
        data: The file of its weights.

    Raises:
        ValueError: It is no ONNX file.
    """

    def __init__(self, content: bytes, data: Path) -> None:
        self._constants, self._data = constants_of(content), data

    def __contains__(self, name: str) -> bool:
        return name in self._constants

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a constant.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self:
            raise ValueError(f"lacks its {name}")
        return self._constants[name].shape

    def read(self, name: str) -> Floats:
        """Value of a constant, possibly mapped from the file.

        Raises:
            ValueError: There is none of that name, or it is not float32 of its sizes.
            OSError: The file of weights cannot be read.
        """
        size = 4 * math.prod(self.shape(name))
        constant = self._constants[name]
        content = constant.content
        if constant.file:
            content = self._from_file(constant, size)
        if constant.dtype != _FLOAT32 or len(content) != size:
            raise ValueError(f"has {name} of {len(content)} bytes, which is not float32 of {list(constant.shape)}")
        return np.frombuffer(content, "<f4").reshape(constant.shape)

    def _from_file(self, constant: Constant, size: int) -> bytes:
        """Read from the file of weights, no more than it holds: a size may be anything."""
        with self._data.open("rb") as file:
            if constant.length != size or constant.offset + size > os.fstat(file.fileno()).st_size:
                return b""
            file.seek(constant.offset)
            return file.read(size)
