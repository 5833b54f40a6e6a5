"""Artifact run by the runtime, as the subject of an evaluation."""

from collections.abc import Sequence

import numpy as np

from clada.contract.manifest import Manifest
from clada.contract.typed_json import plain
from clada.contract.weight_bytes import weight_bytes
from clada.evaluation.subject import Floats, Reading, Subject, SubjectInfo, with_weights
from clada.runtime import Session, TokenStats
from clada.runtime.steps import State


def policy_name(manifest: Manifest, bytes: float | None) -> str:
    """Name of an artifact's policy in tables: "price", or "price, bytes 0.6" at a share other than the exported one."""
    return manifest.policy.name if bytes is None else f"{manifest.policy.name}, bytes {bytes:g}"


def _info(session: Session, name: str) -> SubjectInfo:
    manifest = session.manifest
    model = manifest.model
    quantization = None if manifest.quantization is None else plain(manifest.quantization)
    return SubjectInfo(
        name=name or with_weights(manifest.policy.name, quantization),
        family=model.family,
        neurons=manifest.widths,
        parameters=model.parameters,
        ffn_bytes=weight_bytes(manifest, manifest.quantization),
        context_length=model.context_length,
        vocabulary=model.vocabulary_size,
        policy=plain(manifest.policy),
        calibration=plain(manifest.calibration),
        quantization=quantization,
    )


class SessionSubject(Subject):
    """Artifact on ONNX Runtime: prefill, then decode step by step, KV cache included.

    Args:
        session: The loaded artifact.
        name: Name in tables; its policy's name and weights where not given.
    """

    def __init__(self, session: Session, name: str = "") -> None:
        self.session = session
        self.info = _info(session, name)

    def step(self, state: State, token: int) -> list[TokenStats]:
        """Read one token in decode."""
        return self.session.decode(state, [token])

    def read(self, row: Sequence[int], prompt_tokens: int) -> Reading:
        """See Subject."""
        state = self.session.prefill([row[:prompt_tokens]])
        stats: list[TokenStats] = []
        logits: list[Floats] = []
        for token in row[prompt_tokens:-1]:
            stats += self.step(state, token)
            logits.append(state.logits[0].astype(np.float32))
        return Reading(
            logits=np.stack(logits),
            load=np.array([s.load for s in stats], np.float32),
            surprisal=np.array([s.surprisal for s in stats], np.float32),
            entropy=np.array([s.entropy for s in stats], np.float32),
            read_fraction=np.array([s.read_fraction for s in stats], np.float32),
            active=np.array([s.active for s in stats], np.int32),
            pool=np.array([s.pool for s in stats], np.int32),
        )

    def read_endings(
        self, context: Sequence[int], prompt_tokens: int, endings: Sequence[Sequence[int]]
    ) -> list[Floats]:
        """See Subject; the context is read once."""
        shared = self.session.prefill([context[:prompt_tokens]])
        for token in context[prompt_tokens:]:
            self.step(shared, token)
        readings: list[Floats] = []
        for ending in endings:
            state = shared.copy()
            logits = [state.logits[0].astype(np.float32)]
            for token in ending[:-1]:
                self.step(state, token)
                logits.append(state.logits[0].astype(np.float32))
            readings.append(np.stack(logits))
        return readings
