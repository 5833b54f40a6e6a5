"""Benchmark of artifacts that skip inputs: decode and prefill of a text at shares of their bytes, beside others."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np

from clada.benchmark.contender import FARTHEST_OF_ONE_MODEL, Contender, always, checked_error
from clada.benchmark.decode_loops import TOKENS, LlamaLoop, OurLoop, load_ours
from clada.benchmark.floor import read_bandwidth
from clada.benchmark.footprint import Footprint, footprint
from clada.benchmark.llama_cpp import LlamaModel, LlamaProcess, check_ggufs
from clada.benchmark.opened_artifact import OpenedArtifact, has_dense, opened_artifact
from clada.benchmark.quality import Text, quality
from clada.benchmark.report import Table, rows
from clada.benchmark.results import Measured
from clada.benchmark.settings import ArtifactSettings, BenchSettings
from clada.benchmark.timing import measure
from clada.contract.artifact import data_name
from clada.errors import CladaError
from clada.runtime import Session
from clada.runtime.find_model import find_model

_LOADS = 3
# Read by what is loaded to be weighed.
_PROMPT, _DECODED = 64, 8


@dataclass(frozen=True)
class Compared:
    """All that is timed, loaded.

    Args:
        artifacts: Ours; ratios are relative to the dense graph of the first.
        llamas: GGUF files in llama.cpp.
        ids: Token ids of the text, repeated where it is too short.
    """

    artifacts: list[OpenedArtifact]
    llamas: list[LlamaProcess]
    ids: list[int]


def _check(artifacts: Sequence[OpenedArtifact], chosen: ArtifactSettings) -> None:
    """Raise CladaError where artifacts cannot be told from each other, or read a context."""
    for one, other in itertools.combinations(artifacts, 2):
        if one.precision == other.precision:
            raise CladaError(f"{one.path} and {other.path} are both {one.precision}: time one of them")
        if one.manifest.model.vocabulary_size != other.manifest.model.vocabulary_size:
            raise CladaError(f"{one.path} and {other.path} are of models with different vocabularies")
    longest = min(artifact.dense.context_length for artifact in artifacts) - TOKENS - 1
    for context in chosen.contexts:
        if not 0 < context <= longest:
            raise CladaError(f"the context is {context}; it must be from 1 to {longest}")


def _distance(name: str, loop: OurLoop | LlamaLoop, reference: OurLoop) -> float:
    return checked_error(name, loop.logits, reference.logits, FARTHEST_OF_ONE_MODEL)


def _decode_contenders(compared: Compared, context: int) -> list[Contender]:
    """Contenders that read the same tokens one by one: one that binds anew, and those that are timed."""
    prompt = np.array([compared.ids[:context]])
    tokens = np.array([compared.ids[context : context + 1 + TOKENS]])
    contenders: list[Contender] = []
    reference = None
    for artifact in compared.artifacts:
        theirs = OurLoop(artifact.dense, prompt, tokens)
        reference = reference or theirs
        # It reads everything, and counts nothing.
        run = partial(always, theirs.run, 1.0)
        name, size = artifact.dense_name, artifact.dense_bytes
        error = None if theirs is reference else _distance(name, theirs, reference)
        if has_dense(artifact, compared.artifacts):
            contenders.append(Contender(name, run, size, error=error, repeats=TOKENS, prepare=theirs.go_back))
        size = artifact.weight_bytes
        for share, session in artifact.sessions.items():
            loop, own = OurLoop(session, prompt, tokens), artifact.name(share)
            # The prompt is read densely by all.
            error = checked_error(own, loop.logits, theirs.logits)
            contenders.append(Contender(own, loop.run, 0, size, share, error, repeats=TOKENS, prepare=loop.go_back))
    for llama in compared.llamas:
        assert reference is not None
        other = LlamaLoop(llama, prompt, tokens)
        error = _distance(llama.name, other, reference)
        contenders.append(
            Contender(llama.name, other.run, llama.bytes, error=error, repeats=TOKENS, prepare=other.go_back)
        )
    return contenders


def _prefill_contenders(compared: Compared, tokens: int) -> list[Contender]:
    """Contenders that read a prompt, which all do densely."""
    prompt = compared.ids[:tokens]
    contenders: list[Contender] = []
    for artifact in compared.artifacts:
        sessions = {artifact.name(1): next(iter(artifact.sessions.values()))}
        if has_dense(artifact, compared.artifacts):
            sessions = {artifact.dense_name: artifact.dense, **sessions}
        for name, session in sessions.items():
            contenders.append(Contender(name, partial(always, partial(session.prefill, [prompt]), 1.0)))
    contenders += [Contender(one.name, partial(always, partial(one.prefill, prompt), 1.0)) for one in compared.llamas]
    return contenders


def _tables(compared: Compared, chosen: ArtifactSettings, settings: BenchSettings) -> Iterator[Table]:
    family, reference = compared.artifacts[0].manifest.model.family, compared.artifacts[0].dense_name
    for context in chosen.contexts:
        contenders = _decode_contenders(compared, context)
        bandwidth = partial(read_bandwidth, settings.threads)
        samples = measure(contenders, settings.rounds, bandwidth, f"decoding after {context}")
        yield Table(family, "artifact", "decode", 1, context, rows(contenders, samples, reference))
    tokens = min(settings.prefill_tokens, compared.artifacts[0].dense.context_length - 1)
    contenders = _prefill_contenders(compared, tokens)
    samples = measure(contenders, settings.prefill_rounds, None, "prefill")
    yield Table(family, "artifact", "prefill", tokens, 0, rows(contenders, samples, reference))


def _use_ours(session: Session, ids: list[int]) -> None:
    state = session.prefill([ids[:_PROMPT]])
    for token in ids[_PROMPT:]:
        session.decode(state, [token])


def _use_llama(model: LlamaModel, ids: list[int]) -> None:
    model.prefill(ids[:_PROMPT])
    model.decode(_PROMPT, ids[_PROMPT:])


def _footprints(compared: Compared, chosen: ArtifactSettings, settings: BenchSettings) -> list[Footprint]:
    """Measure how ours and llama.cpp load, and the memory they take after a few tokens."""
    ids, threads = compared.ids[: _PROMPT + _DECODED], settings.threads
    family = compared.artifacts[0].manifest.model.family
    found = []
    for artifact in compared.artifacts:
        load, weights = partial(load_ours, artifact.path, threads), artifact.path.with_name(data_name(artifact.path))
        found.append(footprint(family, artifact.name(1), load, partial(_use_ours, ids=ids), weights, _LOADS))
    for file, llama in zip(chosen.ggufs, compared.llamas, strict=True):
        load_llama = partial(LlamaModel, file, threads, _room(chosen, settings))
        found.append(footprint(family, llama.name, load_llama, partial(_use_llama, ids=ids), file, _LOADS))
    return found


def _room(chosen: ArtifactSettings, settings: BenchSettings) -> int:
    """Tokens that llama.cpp's cache needs to hold."""
    return max(*chosen.contexts, settings.prefill_tokens, chosen.row_tokens) + TOKENS + 1


def artifact_tables(chosen: ArtifactSettings, settings: BenchSettings) -> Iterator[Measured]:
    """Time artifacts, and what each is compared with, reading the same text.

    Args:
        chosen: What is compared, and on what text.
        settings: Threads and rounds.

    Raises:
        CladaError: Something cannot be used, an artifact skips neurons, or was not measured at one of the shares, or
            they are not of one model.
    """
    check_ggufs(chosen.ggufs)
    text = None if chosen.reference is None else Text.of(chosen)
    with ExitStack() as stack:
        artifacts = [
            stack.enter_context(opened_artifact(find_model(path), chosen.shares, settings.threads))
            for path in chosen.paths
        ]
        _check(artifacts, chosen)
        room = _room(chosen, settings)
        llamas = [stack.enter_context(LlamaProcess(file, settings.threads, room)) for file in chosen.ggufs]
        first = artifacts[0]
        for llama, file in zip(llamas, chosen.ggufs, strict=True):
            if llama.vocabulary != first.manifest.model.vocabulary_size:
                raise CladaError(
                    f"{file} has a vocabulary of {llama.vocabulary} tokens, and {first.path} one of "
                    f"{first.manifest.model.vocabulary_size}: they are of different models"
                )
        # Not `encode`, which refuses what is longer than the model's context.
        ids = itertools.cycle(first.dense.tokenizer.encode(chosen.text).ids)
        compared = Compared(artifacts, llamas, list(itertools.islice(ids, room)))
        yield from _tables(compared, chosen, settings)
        if llamas:
            yield _footprints(compared, chosen, settings)
        if text is not None:
            yield quality(text, artifacts, llamas)
