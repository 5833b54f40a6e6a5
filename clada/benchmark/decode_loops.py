"""Decode loops to compare: onnxruntime-genai's generator, llama.cpp and our session, all greedy."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from clada.benchmark.llama_cpp import LlamaProcess
from clada.benchmark.shapes import Shape, random_tokens
from clada.ops.record import Array
from clada.runtime import Session
from clada.runtime.models.ort_cpu import SPINNING

# Read each time, after one more that is not timed: the first after going back binds its buffers anew.
TOKENS = 8


def load_genai(folder: Path, threads: int) -> Any:
    """Load onnxruntime-genai's model, with as many threads as a session of ours, which wait alike."""
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(folder))
    options = {"intra_op_num_threads": threads, **SPINNING}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return onnxruntime_genai.Model(config)


def load_ours(path: Path, threads: int) -> Session:
    """Load our session and its graph, which would otherwise be loaded on first use."""
    session = Session(path, threads=threads, kernels="native")
    assert session.kernels
    return session


class GenaiLoop:
    """Decode loop of onnxruntime-genai's generator after a context.

    Args:
        model: See `load_genai`.
        prompt: i64[1, S], what it has read.
    """

    def __init__(self, model: Any, prompt: Array) -> None:
        import onnxruntime_genai

        parameters = onnxruntime_genai.GeneratorParams(model)
        room = prompt.shape[1] + TOKENS + 2
        # No end of the text before it is full.
        parameters.set_search_options(max_length=room, min_length=room, do_sample=False)
        self._generator, self._prompt = onnxruntime_genai.Generator(model, parameters), prompt[0].astype(np.int32)
        self._generator.append_tokens(self._prompt)
        self.logits: Array = self._generator.get_logits().reshape(-1).copy()

    def go_back(self) -> None:
        """Forget the tokens after the context, and read one token."""
        self._generator.rewind_to(len(self._prompt))
        self._generator.append_tokens(self._prompt[-1:])
        # Only takes what the logits say; each of the next ones reads a token first.
        self._generator.generate_next_token()

    def run(self) -> float:
        """Read the next tokens; all neurons are computed."""
        for _ in range(TOKENS):
            self._generator.generate_next_token()
        return 1.0

    def text(self) -> list[int]:
        """All tokens read so far, the context first."""
        return [int(token) for token in self._generator.get_sequence(0)]


class LlamaLoop:
    """Decode loop of llama.cpp after a context.

    Args:
        model: The loaded file.
        prompt: i64[1, S], what it has read.
        ids: i64[1, 1 + TOKENS], what is read then.
    """

    def __init__(self, model: LlamaProcess, prompt: Array, ids: Array) -> None:
        self._model, self._prompt, self._ids = model, prompt[0].tolist(), ids[0].tolist()
        self.logits = model.prefill(self._prompt)

    def go_back(self) -> None:
        """Forget the tokens after the context, and read one token; all is read again after another text."""
        if self._model.read[: len(self._prompt)] != self._prompt:
            self._model.prefill(self._prompt)
        self._model.decode(len(self._prompt), self._ids[:1])

    def run(self) -> float:
        """Read the next tokens, and all weights for each."""
        self._model.decode(len(self._prompt) + 1, self._ids[1:])
        return 1.0


class OurLoop:
    """Decode loop of our session after a context.

    Args:
        session: See `load_ours`.
        prompt: i64[1, S], what it has read.
        ids: i64[1, S], what is read then, again and again: where each text goes on with the likeliest token, random
            weights soon repeat one, and with it its neurons.
    """

    def __init__(self, session: Session, prompt: Array, ids: Array) -> None:
        self._session, self._ids = session, itertools.cycle(ids[0].tolist())
        self._context = session.prefill(prompt.tolist())
        self.logits: Array = self._context.logits[0].copy()
        self._state = self._context

    def _read(self) -> float:
        # What a text would go on with; it takes time, as in the other loop.
        int(np.argmax(self._state.logits[0]))
        stats = self._session.decode(self._state, [next(self._ids)])[0]
        return stats.active_fraction if self._session.manifest.inputs is None else stats.read_fraction

    def go_back(self) -> None:
        """Forget the tokens after the context, and read one token."""
        self._state = self._context.copy()
        self._read()

    def run(self) -> float:
        """Read the next tokens; returns the share of neurons that were computed, or of the bytes that were read."""
        return float(np.mean([self._read() for _ in range(TOKENS)]))

    def length(self) -> int:
        """Number of tokens read so far."""
        return int(self._state.mask.shape[1])


def read_a_few(model: Any, shape: Shape) -> None:
    """Read a prompt and a few tokens more with a model from `load_genai` or `load_ours`."""
    prompt = random_tokens(shape, 64, seed=2)
    loop = OurLoop(model, prompt, prompt) if isinstance(model, Session) else GenaiLoop(model, prompt)
    loop.go_back()
    loop.run()
