"""Stepwise reading of texts: prefill and decode over the graphs of an artifact."""

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.contract.dial import effort_of_bytes
from clada.contract.manifest import Manifest
from clada.contract.pool import Masks, Pools, choose_pools, overdue, update_pools
from clada.errors import CladaError
from clada.ops import OPS, graph_names
from clada.ops.sparse_ffn import read_fraction
from clada.runtime.loading import Opened
from clada.runtime.models.base import Model
from clada.runtime.telemetry import TokenStats
from clada.runtime.token_ids import checked_ids
from clada.runtime.tokenizer import load_tokenizer


@dataclass
class State:
    """State of a batch of texts; one thread at a time may read on, and `copy` makes another for a second one.

    Args:
        model: The graph that reads it.
        cache: Keys and values, as the model holds them.
        masks: bool[B, F] for each layer, the neurons it may use; none where inputs are skipped.
        mask: i64[B, T], 0 where padded.
        logits: T[B, V], the distribution of the next token; copy it to keep it, a later step may overwrite it.
        pools: State from which pools are chosen; None where every neuron may be used.
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
        """Copy the state, so that both can go on independently.

        Raises:
            CladaError: Another thread is reading on, or the texts cannot go on.
        """
        with self.reading():
            separate = {id(self.model): self.model, id(self.turn): threading.Lock()}
            separate[id(self.cache)] = self.model.copy_cache(self.cache)
            return copy.deepcopy(self, separate)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Exclude other threads within the context.

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


class Reader:
    """Reader of texts, given as token ids, over the graphs of an artifact.

    Args:
        opened: The artifact.
        share: Share of the weights' bytes that a token reads; as exported where None.

    Attributes:
        models: The graphs, each loaded when it is first needed.
        artifact: The files.
        manifest: Manifest of the artifact.
        tokenizer: The model's.
        context_length: Tokens that a text can have, of the model or, where that is less, of an engine.
        effort: The factor on the thresholds that a text begins with.
        pool_policy: Policy of the pools; None where every neuron may be used.

    Raises:
        CladaError: The artifact cannot read such a share, or its tokenizer or pools are damaged.
    """

    def __init__(self, opened: Opened, share: float | None) -> None:
        self._opened, self.models = opened, opened.models
        self.artifact, self.manifest = opened.artifact, opened.artifact.manifest
        self.tokenizer = load_tokenizer(self.artifact)
        context = self.manifest.model.context_length
        self.context_length = context if opened.capacity is None else min(context, opened.capacity)
        self.effort = _effort(self.manifest, share)
        self.pool_policy = self.artifact.pool_policy()
        self._widths = np.array(self.manifest.widths)
        self._op = OPS[self.manifest.sparse_op]
        self._reanalysis_load = np.float32(self.manifest.calibration.reanalysis_load)

    def set_bytes(self, share: float) -> None:
        """Have prompts that are read from now on, and what follows them, read this share of the weights' bytes.

        Raises:
            CladaError: The artifact cannot read such a share.
        """
        self.effort = _effort(self.manifest, share)

    def effort_for(self, share: float | None) -> float:
        """Effort of a text that is to read this share of the weights' bytes; that of other texts where None.

        Raises:
            CladaError: The artifact cannot read such a share.
        """
        return self.effort if share is None else _effort(self.manifest, share)

    def steer(self, state: State, effort: float) -> None:
        """Have what follows in a state's texts be read with this effort; where neurons are skipped there is none."""
        if state.effort is not None:
            state.effort = np.full_like(state.effort, effort)

    def _efforts(self, model: Model, texts: int) -> npt.NDArray[np.float32] | None:
        return np.full(texts, self.effort, np.float32) if model.by_input else None

    def checked(self, tokens: Any, what: str) -> list[int]:
        """Return ids as a list, if all of them are in the vocabulary; see `checked_ids`."""
        return checked_ids(tokens, what, self.manifest.model.vocabulary_size, self.tokenizer)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> State:
        """Read prompts, densely; shorter ones are padded on the left.

        Raises:
            CladaError: There is none, one is empty, too long or of tokens that the model does not know, or what runs
                the graph fails.
        """
        if len(prompts) == 0:
            raise CladaError("there are no prompts")
        checked = [self.checked(prompt, "the prompt") for prompt in prompts]
        longest = max(map(len, checked))
        ids = np.array([[0] * (longest - len(p)) + p for p in checked], np.int64)
        mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in checked], np.int64)
        if self._opened.one_text and len(prompts) > 1:
            raise CladaError(f"cuda_graph is for one text at a time, and there are {len(prompts)}: leave it out")
        model = self.models.of("single" if len(prompts) == 1 else "portable")
        everything = [np.ones((len(prompts), neurons), np.bool_) for neurons in model.neurons]
        nothing_read = np.zeros((len(prompts), model.vocabulary), model.dtype)
        with model.turn:
            state = State(model, model.empty_cache(len(prompts)), everything, mask[:, :0], nothing_read)
            state.effort = self._efforts(model, len(prompts))
            step = self._step(state, ids, mask, everything, [graph_names.LOGITS, *self._scores])
            state.cache, state.mask, state.logits = step.cache, step.mask, step.logits
            if self.pool_policy is not None:
                used = [step.outputs[name] for name in self._scores]
                state.pools = choose_pools(self.pool_policy, used, mask.sum(axis=1), model.running_score)
                state.masks = state.pools.masks
        return state

    def reread(self, state: State, kept: int, tokens: Sequence[int]) -> bool:
        """Go back to the first tokens of a text, and read others after them, densely, as those of a prompt.

        Args:
            state: Of one text; brought up to date in place.
            kept: Number of its tokens that stay.
            tokens: At least two that come after them.

        Returns:
            Whether that was done. It is not, and the text is to be read from its start, where pools are chosen by the
            whole of a prompt, on a GPU and by an engine, and where another session made the state.

        Raises:
            CladaError: As of `prefill`; what fails after the tokens were checked breaks the state.
        """
        ids = np.array([self.checked(tokens, "the prompt")], np.int64)
        if self.pool_policy is not None or state.model is not self.models.of("single"):
            return False
        with state.reading():
            cache = state.model.rewind_cache(state.cache, kept)
            if cache is None:
                return False
            state.broken = True
            state.cache, state.mask, state.effort = cache, state.mask[:, :kept], self._efforts(state.model, 1)
            step = self._step(state, ids, np.ones_like(ids), state.masks, [graph_names.LOGITS])
            state.cache, state.mask, state.logits = step.cache, step.mask, step.logits
            state.broken = False
        return True

    def is_full(self, state: State) -> bool:
        """Whether there is no room for another token of each text; an engine's room includes padding."""
        return self._opened.capacity is not None and state.mask.shape[1] >= self._opened.capacity

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
            The telemetry of each token.

        Raises:
            CladaError: The tokens are not one a text, or not of the model's vocabulary, a text is as long as the
                model's context, another thread reads on, or what runs the graph fails.
        """
        with state.reading():
            return self._decode(state, tokens, alive)

    def _decode(self, state: State, tokens: Sequence[int], alive: Sequence[bool] | None) -> list[TokenStats]:
        texts = len(state.mask)
        ids = np.array(self.checked(tokens, "the step"), np.int64)[:, None]
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
        self.models.check_open()
        before = state.mask.sum(axis=1, keepdims=True)
        positions = np.maximum(before + mask.cumsum(axis=1) - 1, 0)
        if self._opened.capacity is None and positions.max() >= self.context_length:
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


@dataclass(frozen=True)
class _Step:
    """Result of a step of a graph: its outputs, and the state's cache, mask and logits after it."""

    outputs: dict[str, Any]
    cache: Any
    mask: npt.NDArray[np.int64]
    logits: npt.NDArray[Any]


def _effort(manifest: Manifest, share: float | None) -> float:
    """Factor on an artifact's thresholds with which it reads a share of the weights' bytes."""
    if share is None:
        return 1.0
    if manifest.inputs is None:
        raise CladaError(
            f"bytes is {share}, and the artifact skips neurons as it was calibrated to: export it with --bytes"
        )
    return effort_of_bytes(share, manifest.inputs.dial)
