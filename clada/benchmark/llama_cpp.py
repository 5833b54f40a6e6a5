"""llama.cpp as a contender, called through llama-cpp-python in a process of its own."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from clada.benchmark.contender import LLAMA_CPP
from clada.errors import CladaError
from clada.ops.record import Array

P = ParamSpec("P")
R = TypeVar("R")
# What its own programs read at once.
_BATCH = 2048


def check_ggufs(files: Sequence[Path]) -> None:
    """Raise CladaError where llama-cpp-python, or a file that it is to run, is missing, or two have the same name."""
    if files and find_spec("llama_cpp") is None:
        raise CladaError("llama-cpp-python is not installed; install it: pip install llama-cpp-python")
    for file in files:
        if not file.is_file():
            raise CladaError(f"there is no GGUF file {file}")
    for one, other in itertools.combinations(files, 2):
        if one.stem == other.stem:
            raise CladaError(f"{one} and {other} have the same name, which a table tells them by: time one of them")


class LlamaModel:
    """GGUF file in llama.cpp, reading one text; all settings are llama.cpp's own defaults, but for the threads.

    Args:
        file: The file.
        threads: Number of threads.
        room: Number of tokens that its cache holds.

    Raises:
        CladaError: llama.cpp cannot load the file.
    """

    def __init__(self, file: Path, threads: int, room: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        # Kept, as what is called by native code must live; it says nothing, where llama.cpp says much.
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, None)
        llama_cpp.llama_backend_init()
        of_model = llama_cpp.llama_model_default_params()
        of_model.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), of_model)
        if not self._model:
            raise CladaError(f"llama.cpp cannot load {file}: is it a GGUF file of a language model?")
        of_context = llama_cpp.llama_context_default_params()
        of_context.n_ctx, of_context.n_batch = room, _BATCH
        of_context.n_threads = of_context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, of_context)
        if not self._context:
            raise CladaError(f"llama.cpp cannot make a cache of {room} tokens for {file}")
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))

    def _go_back(self, kept: int) -> None:
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), -1, kept, -1)

    def _read(self, tokens: Sequence[int]) -> Array:
        """Read tokens at once; the logits f32[V] after the last, until the next are read."""
        for start in range(0, len(tokens), _BATCH):
            part = tokens[start : start + _BATCH]
            ids = (self._api.llama_token * len(part))(*part)  # a batch points to it
            if self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(part))) != 0:
                raise CladaError(f"llama.cpp cannot read {len(part)} tokens")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.vocabulary,))

    def prefill(self, tokens: Sequence[int]) -> Array:
        """Read a prompt from its start; the logits f32[V] after it."""
        self._go_back(0)
        return self._read(tokens).copy()

    def decode(self, kept: int, tokens: Sequence[int]) -> None:
        """Go back to the first tokens, and read others one by one, each time looking for the likeliest next one."""
        self._go_back(kept)
        for token in tokens:
            int(np.argmax(self._read([token])))

    def score(self, prompt: Sequence[int], tokens: Sequence[int]) -> Array:
        """Read a prompt, then tokens one by one; the logits f32[T, V] after each of those."""
        self.prefill(prompt)
        return np.stack([self._read([token]).copy() for token in tokens])


# Of the process that `LlamaProcess` starts.
_loaded: LlamaModel | None = None


def _load(file: Path, threads: int, room: int) -> int:
    global _loaded
    _loaded = LlamaModel(file, threads, room)
    return _loaded.vocabulary


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_loaded, method)(*arguments)


class LlamaProcess:
    """`LlamaModel` in a process of its own, so that neither its threads nor its memory are those of the others.

    It is a context manager; the process ends with the context.

    Args:
        file: See LlamaModel, as of `threads` and `room`.
        threads: Number of threads.
        room: Number of tokens that its cache holds.

    Attributes:
        name: Name of the contender.
        bytes: Size of the file.
        vocabulary: Number of tokens it knows.
        read: The tokens that its cache holds.

    Raises:
        CladaError: llama.cpp cannot load the file.
    """

    def __init__(self, file: Path, threads: int, room: int) -> None:
        self.name = f"{LLAMA_CPP} {file.stem}"
        self.bytes = file.stat().st_size
        self.read: list[int] = []
        self._file = file
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        try:
            self.vocabulary = self._ask(_load, file, threads, room)
        except CladaError:
            self._process.shutdown()
            raise

    def __enter__(self) -> "LlamaProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def _ask(self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Call a function in the process."""
        try:
            return self._process.submit(function, *arguments, **options).result()
        except BrokenProcessPool as error:
            raise CladaError(f"llama.cpp ended the process that ran {self._file}: is the file damaged?") from error

    def prefill(self, tokens: Sequence[int]) -> Array:
        """See LlamaModel."""
        self.read = list(tokens)
        return self._ask(_call, "prefill", (tokens,))

    def decode(self, kept: int, tokens: Sequence[int]) -> None:
        """See LlamaModel."""
        self.read[kept:] = tokens
        self._ask(_call, "decode", (kept, tokens))

    def score(self, prompt: Sequence[int], tokens: Sequence[int]) -> Array:
        """See LlamaModel."""
        self.read = [*prompt, *tokens]
        return self._ask(_call, "score", (prompt, tokens))
