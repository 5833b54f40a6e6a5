"""A loaded artefact: prefill, decode, and text."""

import copy
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.contract.artefact import (
    GENERATION_CONFIG_NAME,
    Artefact,
    in_place_name,
    open_artefact,
    open_artefact_of_engine,
)
from clada.contract.dial import effort_of_bytes
from clada.contract.engine_record import ENGINE_SUFFIX, read_record
from clada.contract.manifest import Manifest
from clada.contract.pool import Masks, Pools, choose_pools, overdue, update_pools
from clada.errors import CladaError
from clada.ops import OPS, graph_names
from clada.ops.sparse_ffn import read_fraction
from clada.runtime.chat.template import Message, render_chat
from clada.runtime.generation import Completion, GenerationConfig, Piece, generate, stream
from clada.runtime.model_settings import default_sampling, end_tokens
from clada.runtime.models.base import Model
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel, older_than
from clada.runtime.models.ort_cpu_in_place import InPlaceModel
from clada.runtime.models.ort_cuda import DeviceModel
from clada.runtime.models.ort_cuda_in_place import DeviceInPlaceModel
from clada.runtime.models.ort_cuda_session import check_cuda
from clada.runtime.models.resident import ResidentModel
from clada.runtime.sampling import SamplingConfig
from clada.runtime.telemetry import TokenStats
from clada.runtime.tokenizer import load_tokenizer
from clada.runtime.trt.load import load_engine

# What ONNX Runtime's GroupQueryAttention computes in on a GPU.
IN_PLACE_CUDA_TYPES = ("float16",)
_NEEDS_HALF = "its attention knows float16 there, and the artefact is of another type; export with --dtype float16"


@dataclass
class State:
    """Where a batch of texts stands; one thread at a time may read on, and `copy` makes another for a second one.

    Args:
        model: The graph that reads it.
        cache: Keys and values, as the model holds them.
        masks: bool[B, F] for each layer, the neurons it may use; none where inputs are skipped.
        mask: i64[B, T], 0 where padded.
        logits: T[B, V], the distribution of the next token; copy it to keep it, a later step may overwrite it.
        pools: What the pools are chosen by; None where every neuron may be used.
        effort: f32[B], the factor on each text's thresholds, where inputs are skipped; replaced, never written to.
        turn: Held by the thread that reads on.
        broken: Whether a device failed half-way through a step, so that nobody knows where the texts stand.
    """

    model: Model
    cache: Any
    masks: Masks
    mask: npt.NDArray[np.int64]
    logits: npt.NDArray[Any]
    pools: Pools | None = None
    effort: npt.NDArray[np.float32] | None = None
    turn: Any = field(default_factory=threading.Lock, repr=False, compare=False)
    broken: bool = False

    def copy(self) -> "State":
        """The same texts at the same point, to go on another way: neither state changes with the other.

        Raises:
            CladaError: Another thread is reading on, or the texts cannot go on.
        """
        with self.reading():
            separate = {id(self.model): self.model, id(self.turn): threading.Lock()}
            separate[id(self.cache)] = self.model.copy_cache(self.cache)
            return copy.deepcopy(self, separate)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep other threads out.

        Raises:
            CladaError: One is in already, or the texts cannot go on.
        """
        if self.model.process != os.getpid():
            raise CladaError("the state was made before fork(), in another process: read its texts again by prefill")
        if not self.turn.acquire(blocking=False):
            raise CladaError(
                "the state is in use by another thread: give each thread its own, by prefill or State.copy"
            )
        try:
            if self.broken:
                raise CladaError("an earlier step of this state failed half-way: read its texts again by prefill")
            with self.model.turn:
                yield
        finally:
            self.turn.release()


class _LoadedOnce:
    """A graph of a session, loaded by whichever thread first needs it; like functools' cached_property otherwise.

    That one has a lock of its own in some releases of Python, which would stay locked in a forked process.
    """

    def __init__(self, load: Callable[[Any], Model]) -> None:
        self._load, self.__doc__ = load, load.__doc__

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, session: Any, _: type | None = None) -> Any:
        if session is None:
            return self
        with session._lock:
            graphs = vars(session)
            if self._name not in graphs:
                graphs[self._name] = self._load(session)
            return graphs[self._name]


class Session:
    """Runs an artefact on the CPU, or on an NVIDIA GPU.

    An engine runs on the GPU, through TensorRT. Of an ONNX artefact, one text runs on the graph with an in-place cache,
    where there is one; several, on the portable graph. Each is loaded when it is first needed. Both map the same file,
    so weights that are used as they lie are in memory once. What ONNX Runtime and our kernels pack anew (all quantised
    weights, and in float32 those beside the feed-forward networks) is there once a graph, as ONNX Runtime has nothing
    for Python by which sessions share what they pack.

    A session is a context manager: `with Session(path) as session:` gives its memory back at the end, as `close` does.

    Several threads may use one session at the same time, each with texts of its own: calls of `generate`, streams and
    States; on a GPU their steps take turns. A State or a stream is for one thread at a time, which is checked. After
    fork() a session on the CPU loads its graphs again in the child; a State, and what is on a GPU, is for the process
    that made it, which is checked too. ONNX Runtime itself hangs where such a child ends by sys.exit: let it end by
    os._exit, as multiprocessing does.

    A batch gives each text what it would give alone up to rounding, as the two graphs, and batches of different sizes,
    sum in a different order. Logits differ by some 1e-6 of their range in float32, by 1e-3 in float16 and by 1e-2 with
    quantised weights, whose tokens are rounded to 8 bits. So float32 texts agree but for draws at the very border of
    two tokens; in the others some texts go another way where two tokens are nearly as likely as each other, also in
    greedy decoding. The number of threads changes no bit.

    Args:
        model: Path of the ONNX file that `clada-export` wrote, or of the engine that `clada build` made of it; the
            options below are for the first.
        threads: Threads within an op; 0 lets ONNX Runtime choose.
        kernels: What runs the sparse ops: "native", our kernels; "bodies", the function bodies of the file itself, at
            dense speed; "auto", our kernels, and the bodies, with a warning, where those cannot be had.
        weights: What our kernels hold the feed-forward weights as: empty, as the file has them; "bfloat16", a float32
            model's rounded when it is loaded, in half the memory.
        device: "cpu", where None, or "cuda": keys, values, logits, pools and scores stay on the GPU.
        cuda_graph: Whether to capture decode in CUDA graphs: for one text at a time, in one thread, of a float16
            artefact.
        bytes: The share of the weights' bytes that a token is to read, of an artefact exported with a goal of bytes;
            as exported where None, and dense at 1.

    Raises:
        CladaError: The artefact is missing, damaged or not ours, an option has a value that is not known, or the
            artefact cannot be run as asked; when a graph is loaded, its weights are damaged, or ONNX Runtime cannot
            load it, or not on the device.

    Example:
        >>> with Session("out/model.onnx") as session:
        ...     for piece in session.stream("def parse(", GenerationConfig(max_new_tokens=32)):
        ...         print(piece.text, end="")
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
        bytes: float | None = None,
    ) -> None:
        self._unusable = ""
        self._lock = threading.RLock()
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
        self._execution = replace(self._execution, element=self.manifest.model.dtype)
        self.context_length = self.manifest.model.context_length
        self.tokenizer = load_tokenizer(artefact)
        self._generation_config = artefact.settings(GENERATION_CONFIG_NAME)
        self.end_tokens = end_tokens(artefact, self._generation_config, self.tokenizer)
        self.artefact, self._record = artefact, record
        self._vocabulary = self.manifest.model.vocabulary_size
        self._widths = np.array(self.manifest.widths)
        self._op = OPS[self.manifest.sparse_op]
        self.effort = _effort(self.manifest, bytes)
        self._reanalysis_load = np.float32(self.manifest.calibration.reanalysis_load)
        self.pool_policy = artefact.pool_policy()
        if record is not None:
            self.context_length = min(self.context_length, record.capacity)
            self._portable = self._single = load_engine(path, record)
        elif cuda_graph:
            _check_can_be_captured(artefact)
        _SESSIONS.add(self)

    def close(self) -> None:
        """Give the graphs back, and with them their memory, once no State holds one; nothing can be read afterwards."""
        self._unusable = "the session is closed: make another"
        for name in ("_portable", "_single"):
            vars(self).pop(name, None)

    def __enter__(self) -> "Session":
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._unusable:
            raise CladaError(self._unusable)

    def _begin_in_child(self) -> None:
        """After fork(): the threads of the graphs are in the parent, and a lock may be held by one that is not here."""
        self._lock = threading.RLock()
        graphs = [vars(self)[name] for name in ("_portable", "_single") if name in vars(self)]
        if any(isinstance(model, ResidentModel) for model in graphs):
            self._unusable = self._unusable or (
                "the session was made before fork(), and what is on a GPU is the parent's: make a session in the child"
            )
            return
        for name in ("_portable", "_single"):
            if isinstance(vars(self).get(name), OnnxRuntimeModel):
                del vars(self)[name]

    @cached_property
    def default_sampling(self) -> SamplingConfig:
        """How tokens are chosen where a GenerationConfig does not say: as the model's files ask for.

        Raises:
            CladaError: They ask for what makes no sense.
        """
        return default_sampling(self._generation_config)

    @_LoadedOnce
    def _portable(self) -> Model:
        kind: type[OnnxRuntimeModel | DeviceModel] = (
            OnnxRuntimeModel if self._execution.device == "cpu" else DeviceModel
        )
        return self._load(self.artefact.model.name, lambda path: kind(path, self._execution))

    @_LoadedOnce
    def _single(self) -> Model:
        """The graph for one text."""
        self._check_open()
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
        self._check_open()
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
        return self._check_prompt(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _check_prompt(self, ids: Sequence[int]) -> list[int]:
        """A prompt's tokens, if they can be continued."""
        checked = self._checked(ids, "the prompt")
        if len(checked) >= self.context_length:
            of_engine = self._record is not None and self._record.capacity == self.context_length
            limit = "the engine was built with --capacity" if of_engine else "the model's context is"
            raise CladaError(
                f"the prompt has {len(checked)} tokens; {limit} {self.context_length}, "
                "which must also hold what is generated"
            )
        return checked

    def _checked(self, tokens: Any, what: str) -> list[int]:
        """Ids as a list, if all of them are in the vocabulary."""
        if not hasattr(tokens, "__len__") or isinstance(tokens, str | bytes):
            raise CladaError(f"{what} is {tokens!r:.80}; it must be a sequence of token ids")
        if len(tokens) == 0:
            raise CladaError(f"{what} is empty")
        try:
            ids = np.asarray(tokens)
        except (ValueError, OverflowError):
            ids = np.empty(0)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise CladaError(f"{what} holds what is not a token id, an integer: {list(tokens)!r:.80}")
        for token in (int(ids.min()), int(ids.max())):
            if not 0 <= token < self._vocabulary:
                name = self.tokenizer.id_to_token(token) if 0 <= token < 2**32 else None
                named = f"{token} ({name})" if name is not None else str(token)
                raise CladaError(
                    f"{what} holds token {named}, which the model's vocabulary of {self._vocabulary} does not"
                )
        return [int(token) for token in ids.tolist()]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, written by the model's chat template."""
        return self.encode(render_chat(self.artefact, messages), add_special_tokens=False)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> State:
        """Read prompts, densely; shorter ones are padded on the left.

        Raises:
            CladaError: There is none, one is empty, too long or of tokens that the model does not know, or what runs
                the graph fails.
        """
        if len(prompts) == 0:
            raise CladaError("there are no prompts")
        checked = [self._checked(prompt, "the prompt") for prompt in prompts]
        longest = max(map(len, checked))
        ids = np.array([[0] * (longest - len(p)) + p for p in checked], np.int64)
        mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in checked], np.int64)
        if self._execution.cuda_graph and len(prompts) > 1:
            raise CladaError(f"cuda_graph is for one text at a time, and there are {len(prompts)}: leave it out")
        model = self._single if len(prompts) == 1 else self._portable
        everything = [np.ones((len(prompts), neurons), np.bool_) for neurons in model.neurons]
        nothing_read = np.zeros((len(prompts), model.vocabulary), model.dtype)
        with model.turn:
            state = State(model, model.empty_cache(len(prompts)), everything, mask[:, :0], nothing_read)
            if model.by_input:
                state.effort = np.full(len(prompts), self.effort, np.float32)
            step = self._step(state, ids, mask, everything, [graph_names.LOGITS, *self._scores])
            state.cache, state.mask, state.logits = step.cache, step.mask, step.logits
            if self.pool_policy is not None:
                used = [step.outputs[name] for name in self._scores]
                state.pools = choose_pools(self.pool_policy, used, mask.sum(axis=1), model.running_score)
                state.masks = state.pools.masks
        return state

    def is_full(self, state: State) -> bool:
        """Whether there is no room for another token of each text; an engine has so much, padding included."""
        return self._record is not None and state.mask.shape[1] >= self._record.capacity

    @cached_property
    def _scores(self) -> list[str]:
        """Outputs that the pools are chosen by."""
        return [] if self.pool_policy is None else [graph_names.score(n) for n in range(len(self._widths))]

    def decode(self, state: State, tokens: Sequence[int], alive: Sequence[bool] | None = None) -> list[TokenStats]:
        """Read one token a text, sparsely.

        A step that fails leaves the state as it was, so that another can follow; only a device that fails half-way
        breaks it, which the next step says.

        Args:
            state: Brought up to date in place.
            tokens: The token each text goes on with.
            alive: False for texts that have ended: their token is padding.

        Returns:
            How hard each token was and what it was given.

        Raises:
            CladaError: The tokens are not one a text, or not of the model's vocabulary, a text is as long as the
                model's context, another thread reads on, or what runs the graph fails.
        """
        with state.reading():
            return self._decode(state, tokens, alive)

    def _decode(self, state: State, tokens: Sequence[int], alive: Sequence[bool] | None) -> list[TokenStats]:
        texts = len(state.mask)
        ids = np.array(self._checked(tokens, "the step"), np.int64)[:, None]
        mask = np.ones((texts, 1), np.int64) if alive is None else np.array(alive, np.bool_).astype(np.int64)[:, None]
        if not len(ids) == len(mask) == texts:
            raise CladaError(f"the state has {texts} texts; {len(ids)} tokens and {len(mask)} flags were given")
        fetch = [
            graph_names.LOGITS,
            graph_names.SURPRISAL,
            graph_names.ENTROPY,
            graph_names.LOAD,
            graph_names.ACTIVE,
            *self._scores,
        ]
        fetch += [graph_names.READ] if state.model.by_input else []
        due = np.zeros(texts, np.bool_)
        masks = state.masks
        if state.pools is not None:
            due = overdue(state.pools, float(self._reanalysis_load)) & (mask[:, 0] > 0)
            if due.any():
                masks = [pool | due[:, None] for pool in masks]
        step = self._step(state, ids, mask, masks, fetch)
        outputs = step.outputs
        opened = due | (outputs[graph_names.LOAD] >= self._reanalysis_load)
        allowed = np.tile(self._widths, (texts, 1))
        if masks:
            closed = ~opened
            allowed[closed] = np.stack([mask.sum(axis=1) for mask in masks], axis=1)[closed]
        # From here on only a device can fail: what it keeps of the text has gone on, what is here has not.
        state.broken = True
        if self.pool_policy is not None and state.pools is not None:
            update_pools(self.pool_policy, state.pools, state.model.scores(outputs), opened, mask[:, 0] > 0)
            state.masks = state.pools.masks
        state.cache, state.mask, state.logits = step.cache, step.mask, step.logits
        state.broken = False
        active = outputs[graph_names.ACTIVE].T
        if state.model.by_input:
            read = outputs[graph_names.READ]
        else:
            read = read_fraction(self._op, allowed, active, self._widths) @ (self._widths / self._widths.sum())
        return [
            TokenStats(
                surprisal=float(outputs[graph_names.SURPRISAL][row]),
                entropy=float(outputs[graph_names.ENTROPY][row]),
                load=float(outputs[graph_names.LOAD][row]),
                active_fraction=float(active[row].sum() / self._widths.sum()),
                read_fraction=float(read[row]),
                active=tuple(active[row].tolist()),
                pool=tuple(allowed[row].tolist()),
            )
            for row in range(texts)
        ]

    def _step(
        self,
        state: State,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.int64],
        masks: Masks,
        fetch: list[str],
    ) -> "_Step":
        """Run the graph once; the state stays as it is."""
        self._check_open()
        before = state.mask.sum(axis=1, keepdims=True)
        positions = np.maximum(before + mask.cumsum(axis=1) - 1, 0)
        if self._record is None and positions.max() >= self.context_length:
            raise CladaError(f"the text has {positions.max() + 1} tokens; the model's context is {self.context_length}")
        whole = np.concatenate([state.mask, mask], axis=1)
        inputs = {
            graph_names.INPUT_IDS: ids,
            graph_names.ATTENTION_MASK: whole,
            graph_names.POSITION_IDS: positions,
            graph_names.PAST_LOGITS: state.logits,
        }
        inputs |= {graph_names.pool(layer): pool for layer, pool in enumerate(masks)}
        if state.effort is not None:
            inputs[graph_names.EFFORT] = state.effort
        outputs, cache = state.model.step(inputs, state.cache, fetch)
        return _Step(outputs, cache, whole, outputs[graph_names.LOGITS][:, -1])

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        config: GenerationConfig | None = None,
    ) -> list[Completion]:
        """Complete prompts as one batch; each comes out as it would alone, up to rounding (see Session).

        Args:
            prompts: A text or several, or the token ids of one or of several.
            config: When to stop and how to choose; the defaults where None.

        Raises:
            CladaError: A prompt is neither text nor token ids; as of `encode` and `prefill`.
        """
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral))
        each: Sequence[Any] = [prompts] if one else prompts
        ids = [self._prompt_ids(prompt) for prompt in each]
        return generate(self, ids, config or GenerationConfig()) if ids else []

    def stream(self, prompt: str | Sequence[int], config: GenerationConfig | None = None) -> Iterator[Piece]:
        """Complete one prompt, given as text or token ids, piece by piece.

        Raises:
            CladaError: As of `generate`.
        """
        return stream(self, self._prompt_ids(prompt), config or GenerationConfig())

    def _prompt_ids(self, prompt: Any) -> list[int]:
        return self.encode(prompt) if isinstance(prompt, str) else self._check_prompt(prompt)


@dataclass(frozen=True)
class _Step:
    """What a step of a graph gives: its outputs, and the state's cache, mask and logits after it."""

    outputs: dict[str, Any]
    cache: Any
    mask: npt.NDArray[np.int64]
    logits: npt.NDArray[Any]


_SESSIONS: "weakref.WeakSet[Session]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for session in list(_SESSIONS):
        session._begin_in_child()


if hasattr(os, "register_at_fork"):  # where there is fork()
    os.register_at_fork(after_in_child=_begin_in_child)


def _refuse_options(engine: Path, given: dict[str, Any]) -> None:
    """Raise CladaError for an option that says how ONNX Runtime is to run a graph."""
    usual = {field.name: field.default for field in fields(Execution)} | {"device": None}
    for name, value in given.items():
        if value != usual[name]:
            raise CladaError(
                f"{name} is {value!r}, which is for ONNX graphs, and {engine} runs on the GPU it was built for: leave "
                "it out"
            )


def _effort(manifest: Manifest, share: float | None) -> float:
    """The factor on an artefact's thresholds with which it reads a share of the weights' bytes."""
    if share is None:
        return 1.0
    if manifest.inputs is None:
        raise CladaError(
            f"bytes is {share}, and the artefact skips neurons as it was calibrated to: export it with --bytes"
        )
    return effort_of_bytes(share, manifest.inputs.dial)


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
