"""A loaded artefact: prefill, decode, and text."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.plugins import graph
from clada.plugins.errors import CladaError
from clada.plugins.ops import OPS
from clada.plugins.ops.sparse_ffn import read_fraction
from clada.runtime.artefact import (
    GENERATION_CONFIG_NAME,
    Artefact,
    in_place_name,
    open_artefact,
    open_artefact_of_engine,
)
from clada.runtime.backends.cuda import check_cuda
from clada.runtime.backends.device import DeviceModel
from clada.runtime.backends.device_in_place import DeviceInPlaceModel
from clada.runtime.backends.in_place import InPlaceModel
from clada.runtime.backends.model import Model
from clada.runtime.backends.onnxruntime import Execution, OnnxRuntimeModel, older_than
from clada.runtime.backends.tensorrt import load_engine
from clada.runtime.engine_record import ENGINE_SUFFIX, read_record
from clada.runtime.generation import Completion, GenerationConfig, Piece, generate, stream
from clada.runtime.pool import Masks, Pools, choose_pools, overdue, update_pools
from clada.runtime.telemetry import TokenStats
from clada.runtime.text import load_tokenizer, render_chat

# What ONNX Runtime's GroupQueryAttention computes in on a GPU.
IN_PLACE_CUDA_TYPES = ("float16",)
_NEEDS_HALF = "its attention knows float16 there, and the artefact is of another type; export with --dtype float16"


@dataclass
class State:
    """Where a batch of texts stands.

    Args:
        model: The graph that reads it.
        cache: Keys and values, as the model holds them.
        masks: bool[B, F] for each layer, the neurons it may use.
        mask: i64[B, T], 0 where padded.
        logits: T[B, V], the distribution of the next token; copy it to keep it, a later step may overwrite it.
        pools: What the pools are chosen by; None where every neuron may be used.
    """

    model: Model
    cache: Any
    masks: Masks
    mask: npt.NDArray[np.int64]
    logits: npt.NDArray[Any]
    pools: Pools | None = None

    def copy(self) -> "State":
        """The same texts at the same point, to go on another way: neither state changes with the other."""
        separate = {id(self.model): self.model, id(self.cache): self.model.copy_cache(self.cache)}
        return copy.deepcopy(self, separate)


class Session:
    """Runs an artefact on the CPU, or on an NVIDIA GPU.

    An engine runs on the GPU, through TensorRT. Of an ONNX artefact, one text runs on the graph with an in-place cache,
    where there is one; several, on the portable graph. Each is loaded when it is first needed.

    Args:
        model: Path of the ONNX file that `clada-export` wrote, or of the engine that `clada build` made of it; the
            options below are for the first.
        threads: See Execution, as are the following.
        kernels: See Execution.
        weights: See Execution.
        device: "cpu", where None, or "cuda": keys, values, logits, pools and scores stay on the GPU.
        cuda_graph: Whether to capture decode in CUDA graphs: for one text at a time, in one thread, of a float16
            artefact.

    Raises:
        CladaError: The artefact is missing, damaged or not ours, an option has a value that is not known, or the
            artefact cannot be run as asked; when a graph is loaded, its weights are damaged, or ONNX Runtime cannot
            load it, or not on the device.

    Example:
        >>> session = Session("out/model.onnx")
        >>> for piece in session.stream("def parse(", GenerationConfig(max_new_tokens=32)):
        ...     print(piece.text, end="")
    """

    def __init__(
        self,
        model: Path | str,
        *,
        threads: int = 0,
        kernels: str = "auto",
        weights: str = "",
        device: str | None = None,
        cuda_graph: bool = False,
    ) -> None:
        path = Path(model)
        record = None
        if path.suffix == ENGINE_SUFFIX:
            given = {"threads": threads, "kernels": kernels, "weights": weights, "cuda_graph": cuda_graph}
            _refuse_options(path, given | {"device": device})
        self._execution = Execution(threads, kernels, weights, device=device or "cpu", cuda_graph=cuda_graph)
        if path.suffix == ENGINE_SUFFIX:
            record = read_record(path)
            artefact = open_artefact_of_engine(path)
        else:
            if device == "cuda":
                check_cuda()
            artefact = open_artefact(path, check_weights=False)
            if weights and artefact.quantization is not None:
                raise CladaError(
                    f"weights={weights} is for weights in float32, and those of {path} are quantised to "
                    f"{artefact.quantization.bits} bits: leave it out"
                )
        self.folder, self.manifest = artefact.folder, artefact.manifest
        self.context_length = self.manifest.model.context_length
        self.tokenizer = load_tokenizer(artefact)
        self.end_tokens = _end_tokens(artefact)
        self.artefact, self._record = artefact, record
        self._vocabulary = self.manifest.model.vocabulary_size
        self._neurons = np.array(self.manifest.model.neurons)
        self._op = OPS[self.manifest.ffn_op]
        self._reanalysis_load = np.float32(self.manifest.calibration.reanalysis_load)
        self.pool_policy = artefact.pool_policy()
        if record is not None:
            self.context_length = min(self.context_length, record.capacity)
            self._portable = self._single = load_engine(path, record)
        elif cuda_graph:
            _check_can_be_captured(artefact)

    @cached_property
    def _portable(self) -> Model:
        kind: type[OnnxRuntimeModel | DeviceModel] = (
            OnnxRuntimeModel if self._execution.device == "cpu" else DeviceModel
        )
        return self._load(self.artefact.model.name, lambda path: kind(path, self._execution))

    @cached_property
    def _single(self) -> Model:
        """The graph for one text."""
        if self.manifest.in_place_cache is None:
            return self._portable
        name, needed = in_place_name(self.artefact.model), self.artefact.in_place_needs
        if older_than(needed):
            warnings.warn(f"{name} needs ONNX Runtime {needed}; running the portable graph instead", stacklevel=2)
            return self._portable
        if self._execution.device == "cpu":
            return self._load(name, lambda path: InPlaceModel(path, self.context_length, self._execution))
        if _dtype(self.artefact) not in IN_PLACE_CUDA_TYPES:
            warnings.warn(f"{name} would not run on the GPU: {_NEEDS_HALF}; running the portable graph", stacklevel=2)
            return self._portable
        captured = self._execution.cuda_graph
        return self._load(name, lambda path: DeviceInPlaceModel(path, self.context_length, self._execution, captured))

    def _load(self, name: str, load: Callable[[Path], Model]) -> Model:
        """Load a graph, which may be long after the session was made, while it is checked."""
        return self.artefact.load_graph(name, load)

    @property
    def kernels(self) -> str:
        """What runs the ops for one text: the native kernels and their instruction set, or the function bodies."""
        return self._single.kernels

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, begun as the model expects.

        Raises:
            CladaError: The prompt is empty, leaves no room in the model's context or holds a token it does not know.
        """
        ids = list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        self._check_prompt(ids)
        return ids

    def _check_prompt(self, ids: Sequence[int]) -> None:
        if not ids:
            raise CladaError("the prompt is empty")
        if max(ids) >= self._vocabulary:
            raise CladaError(
                f"the prompt holds token {max(ids)} ({self.tokenizer.id_to_token(max(ids))}), "
                f"which the model's vocabulary of {self._vocabulary} does not"
            )
        if len(ids) >= self.context_length:
            of_engine = self._record is not None and self._record.capacity == self.context_length
            limit = "the engine was built with --capacity" if of_engine else "the model's context is"
            raise CladaError(
                f"the prompt has {len(ids)} tokens; {limit} {self.context_length}, "
                "which must also hold what is generated"
            )

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, written by the model's chat template."""
        return self.encode(render_chat(self.artefact, messages), add_special_tokens=False)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> State:
        """Read prompts, densely; shorter ones are padded on the left."""
        longest = max(map(len, prompts))
        ids = np.array([[0] * (longest - len(p)) + list(p) for p in prompts], np.int64)
        mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], np.int64)
        if self._execution.cuda_graph and len(prompts) > 1:
            raise CladaError(f"cuda_graph is for one text at a time, and there are {len(prompts)}: leave it out")
        model = self._single if len(prompts) == 1 else self._portable
        everything = [np.ones((len(prompts), neurons), np.bool_) for neurons in model.neurons]
        nothing_read = np.zeros((len(prompts), model.vocabulary), model.dtype)
        state = State(model, model.empty_cache(len(prompts)), everything, mask[:, :0], nothing_read)
        outputs = self._advance(state, ids, mask, [graph.LOGITS, *self._scores])
        if self.pool_policy is not None:
            used = [outputs[name] for name in self._scores]
            state.pools = choose_pools(self.pool_policy, used, mask.sum(axis=1), model.running_score)
            state.masks = state.pools.masks
        return state

    def is_full(self, state: State) -> bool:
        """Whether there is no room for another token of each text; an engine has so much, padding included."""
        return self._record is not None and state.mask.shape[1] >= self._record.capacity

    @cached_property
    def _scores(self) -> list[str]:
        """Outputs that the pools are chosen by."""
        return [] if self.pool_policy is None else [graph.score(n) for n in range(len(self._neurons))]

    def decode(self, state: State, tokens: Sequence[int], alive: Sequence[bool] | None = None) -> list[TokenStats]:
        """Read one token a text, sparsely.

        Args:
            state: Brought up to date in place.
            tokens: The token each text goes on with.
            alive: False for texts that have ended: their token is padding.

        Returns:
            How hard each token was and what it was given.
        """
        mask = np.ones((len(tokens), 1), np.int64) if alive is None else np.array(alive, np.int64)[:, None]
        fetch = [graph.LOGITS, graph.SURPRISAL, graph.ENTROPY, graph.LOAD, graph.ACTIVE, *self._scores]
        due = np.zeros(len(tokens), np.bool_)
        if state.pools is not None:
            due = overdue(state.pools, float(self._reanalysis_load)) & (mask[:, 0] > 0)
            if due.any():
                state.masks = [pool | due[:, None] for pool in state.masks]
        outputs = self._advance(state, np.array(tokens, np.int64)[:, None], mask, fetch)
        opened = due | (outputs[graph.LOAD] >= self._reanalysis_load)
        allowed = np.stack([mask.sum(axis=1) for mask in state.masks], axis=1)
        allowed[opened] = self._neurons
        if self.pool_policy is not None and state.pools is not None:
            update_pools(self.pool_policy, state.pools, state.model.scores(outputs), opened, mask[:, 0] > 0)
            state.masks = state.pools.masks
        active = outputs[graph.ACTIVE].T
        read = read_fraction(self._op, allowed, active, self._neurons) @ (self._neurons / self._neurons.sum())
        return [
            TokenStats(
                surprisal=float(outputs[graph.SURPRISAL][row]),
                entropy=float(outputs[graph.ENTROPY][row]),
                load=float(outputs[graph.LOAD][row]),
                active_fraction=float(active[row].sum() / self._neurons.sum()),
                read_fraction=float(read[row]),
                active=tuple(active[row].tolist()),
                pool=tuple(allowed[row].tolist()),
            )
            for row in range(len(tokens))
        ]

    def _advance(
        self, state: State, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], fetch: list[str]
    ) -> dict[str, Any]:
        before = state.mask.sum(axis=1, keepdims=True)
        state.mask = np.concatenate([state.mask, mask], axis=1)
        inputs = {
            graph.INPUT_IDS: ids,
            graph.ATTENTION_MASK: state.mask,
            graph.POSITION_IDS: np.maximum(before + mask.cumsum(axis=1) - 1, 0),
            graph.PAST_LOGITS: state.logits,
        }
        inputs |= {graph.pool(layer): pool for layer, pool in enumerate(state.masks)}
        outputs, state.cache = state.model.step(inputs, state.cache, fetch)
        state.logits = outputs[graph.LOGITS][:, -1]
        return outputs

    def generate(self, prompts: str | Sequence[str], config: GenerationConfig | None = None) -> list[Completion]:
        """Complete prompts as one batch; each comes out as it would alone."""
        texts = [prompts] if isinstance(prompts, str) else prompts
        if not texts:
            return []
        return generate(self, [self.encode(text) for text in texts], config or GenerationConfig())

    def stream(self, prompt: str | Sequence[int], config: GenerationConfig | None = None) -> Iterator[Piece]:
        """Complete one prompt, given as text or token ids, piece by piece."""
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check_prompt(ids)
        return stream(self, ids, config or GenerationConfig())


def _refuse_options(engine: Path, given: dict[str, Any]) -> None:
    """Raise CladaError for an option that says how ONNX Runtime is to run a graph."""
    usual = {field.name: field.default for field in fields(Execution)} | {"device": None}
    for name, value in given.items():
        if value != usual[name]:
            raise CladaError(
                f"{name} is {value!r}, which is for ONNX graphs, and {engine} runs on the GPU it was built for: leave "
                "it out"
            )


def _dtype(artefact: Artefact) -> str:
    return artefact.manifest.model.dtype


def _check_can_be_captured(artefact: Artefact) -> None:
    """Raise CladaError for an artefact whose decode steps no CUDA graph can hold."""
    reason = ""
    if artefact.in_place_model is None:
        reason = "it has no graph with an in-place cache"
    elif older_than(artefact.in_place_needs):
        reason = f"its graph with an in-place cache needs ONNX Runtime {artefact.in_place_needs}"
    elif not artefact.in_place_fixed_shapes:
        reason = "it was exported by an older release of clada; export it again"
    elif _dtype(artefact) not in IN_PLACE_CUDA_TYPES:
        reason = _NEEDS_HALF
    if reason:
        raise CladaError(f"{artefact.model} cannot be captured in a CUDA graph: {reason}")


def _end_tokens(artefact: Artefact) -> frozenset[int]:
    """Tokens that end a text, as the model's generation configuration names them."""
    config = artefact.settings(GENERATION_CONFIG_NAME)
    value = config.get("eos_token_id")
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)
