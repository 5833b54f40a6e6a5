"""Prompts that begin as the one before: what is read of them, and that the result is that of reading all."""

import numpy as np
import pytest

from clada.errors import CladaError
from clada.runtime import GenerationConfig, Prefix, SamplingConfig, Session
from clada.runtime.prefix import prefill_after

GREEDY = GenerationConfig(6, sampling=SamplingConfig())
RNG = np.random.default_rng(0)
FIRST, REST = ([int(token) for token in RNG.integers(1, 500, count)] for count in (20, 11))


@pytest.fixture(params=["single", "portable"])
def session(request, inputs_artifact) -> Session:
    """A session whose one text is read by the graph with an in-place cache, or by the one for any batch."""
    session = Session(inputs_artifact, threads=1)
    chosen = session.models.of(request.param)
    session.models.of = lambda _: chosen
    return session


@pytest.fixture
def read(session, monkeypatch) -> list[int]:
    """Number of tokens of each step of a prompt."""
    counts = []
    step = session._step

    def counted(state, ids, *arguments):
        if ids.shape[1] > 1:
            counts.append(ids.shape[1])
        return step(state, ids, *arguments)

    monkeypatch.setattr(session, "_step", counted)
    return counts


def agrees(session: Session, prefix: Prefix, prompt: list[int]) -> bool:
    """Whether the state after a prompt is that of reading all of it: its logits, and those of tokens after it."""
    ours, whole = prefill_after(session, prefix, prompt), session.prefill([prompt])
    for token in (3, 5, 8):
        if not np.allclose(ours.logits, whole.logits, rtol=0, atol=2e-5 * np.abs(whole.logits).max()):
            return False
        session.decode(ours, [token])
        session.decode(whole, [token])
    return np.array_equal(ours.mask, whole.mask)


def test_the_rest_of_a_conversation_is_read(session, read):
    """With the answer, which was read sparsely, in it."""
    prefix = Prefix()
    answer = [piece.token for piece in session.stream(FIRST, GREEDY, prefix)]
    prompt = [*FIRST, *answer, *REST]
    assert agrees(session, prefix, prompt)
    assert read == [len(FIRST), len(answer) + len(REST), len(prompt)]
    assert agrees(session, prefix, [*prompt, *REST])
    assert read[3] == len(REST)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        (FIRST, 2),
        (FIRST[:9], 2),
        ([*FIRST, 7], 2),
        ([*FIRST[:12], 499, 498, 497], 3),
        ([499, *FIRST], 21),
        (FIRST[:2], 2),
    ],
)
def test_as_much_is_read_as_differs(session, read, prompt, count):
    """Two tokens at least: one alone would be decoded. A conversation whose oldest turns are left out is read anew."""
    prefix = Prefix()
    list(session.stream(FIRST, GREEDY, prefix))
    assert agrees(session, prefix, prompt)
    assert read == [len(FIRST), count, len(prompt)]


def test_an_answer_that_is_not_read_to_its_end_is_left(session, read):
    prefix = Prefix()
    pieces = session.stream(FIRST, GREEDY, prefix)
    next(pieces)
    pieces.close()
    assert agrees(session, prefix, [*FIRST, *REST])
    assert read[1] == len(REST)


def test_after_a_failure_all_is_read(session, read, monkeypatch):
    prefix = Prefix()
    list(session.stream(FIRST, GREEDY, prefix))
    with monkeypatch.context() as patch:
        patch.setattr(type(prefix.state.model), "step", lambda *_: (_ for _ in ()).throw(CladaError("no memory")))
        with pytest.raises(CladaError, match="no memory"):
            prefill_after(session, prefix, [*FIRST, *REST])
    assert prefix.state is None
    assert agrees(session, prefix, [*FIRST, *REST])
    assert read[-2:] == [31, 31]


def test_tokens_are_checked(session):
    prefix = Prefix()
    list(session.stream(FIRST, GREEDY, prefix))
    state = prefix.state
    with pytest.raises(CladaError, match="the prompt holds"):
        session.reread(state, 5, [1, 10**6])
    # Nothing of it is gone.
    assert session.reread(state, len(FIRST), REST)
    np.testing.assert_allclose(state.logits, session.prefill([[*FIRST, *REST]]).logits, rtol=0, atol=1e-4)


def test_another_sessions_text_is_not_gone_on_with(session, inputs_artifact):
    prefix = Prefix()
    list(Session(inputs_artifact, threads=1).stream(FIRST, GREEDY, prefix))
    state = prefill_after(session, prefix, [*FIRST, *REST])
    assert state.model is session.models.of("single")


def test_where_neurons_are_skipped_all_is_read(tiny_artifact):
    """A pool is chosen by all of a prompt."""
    session, prefix = Session(tiny_artifact, threads=1), Prefix()
    list(session.stream(FIRST, GREEDY, prefix))
    state = prefix.state
    assert agrees(session, prefix, [*FIRST, *REST])
    assert prefix.state is not state
