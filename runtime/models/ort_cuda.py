"""Graph in ONNX Runtime with all persistent state on its device."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnxruntime

from clada.ops import graph_names
from clada.runtime.models.memory import Array, put
from clada.runtime.models.ort_cpu import NUMPY_TYPES, Execution, create_session, session_options
from clada.runtime.models.ort_cuda_session import cuda_providers
from clada.runtime.models.ort_errors import one_line_errors
from clada.runtime.models.resident import Buffers, DeviceCache, ResidentModel
from clada.runtime.models.score import accumulation


class DeviceModel(ResidentModel):
    """Loaded graph, for any number of texts, whose cache, logits, pools and scores stay on the device.

    Args:
        path: The ONNX file.
        execution: Options of ONNX Runtime, the device included.

    Raises:
        CladaError: ONNX Runtime cannot load the file, not on the device or not with the kernels that were asked for.
    """

    def __init__(self, path: Path, execution: Execution) -> None:
        self._execution = execution
        self._session, kernels = create_session(path, execution)
        inputs = {value.name: (value.shape, NUMPY_TYPES[value.type]) for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        place = partial(put, device=execution.device)
        sites, all_logits = int(outputs[graph_names.ACTIVE][0]), outputs[graph_names.LOGITS][1] != 1
        super().__init__(inputs, kernels, execution.device, place, sites, all_logits)

    def _binding(self) -> Any:
        return self._session.io_binding()

    def empty_cache(self, texts: int) -> Any:
        """See Model."""
        return self.load_cache(self._no_tokens(texts))

    def load_cache(self, keys_values: Sequence[Array]) -> Any:
        """Create a cache that holds keys and values T[B, H, P, d], those of each layer in turn."""
        texts, _, length, _ = keys_values[0].shape
        return DeviceCache(self._buffers(texts), [self._place(array) for array in keys_values], length)

    def copy_cache(self, cache: DeviceCache) -> Any:
        """See Model."""
        texts = cache.keys_values[0].shape()[0]
        return DeviceCache(self._buffers(texts), list(cache.keys_values), cache.length)

    @cached_property
    def _accumulation(self) -> Any:
        providers = cuda_providers(cuda_graph=False) if self._device == "cuda" else ["CPUExecutionProvider"]
        options = session_options(self._execution)
        return onnxruntime.InferenceSession(accumulation(), options, providers=providers, enable_fallback=0)

    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        self._session.run_with_iobinding(binding)

    def _errors(self) -> AbstractContextManager[None]:
        return one_line_errors(self._device)

    def _bind_cache(self, binding: Any, cache: DeviceCache, total: int) -> None:
        for past, present, value in zip(self._past, self._present, cache.keys_values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_output(present, self._device, 0)

    def _take_cache(self, binding: Any, cache: DeviceCache, total: int) -> None:
        cache.keys_values = binding.get_outputs()[-len(self._present) :]
        cache.length = total
