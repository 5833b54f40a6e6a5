"""The scheduler: texts beside others come out as alone, slots are given back, prompts are read once."""

import queue
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from clada.errors import CladaError
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.batch import can_gather, gather
from clada.runtime.generation import Choice
from clada.server.crossover import Crossover, measure_crossover
from clada.server.jobs import Event, Failed, Generated, Job, PromptRead
from clada.server.logprobs import logprobs_of
from clada.server.metrics import Metrics
from clada.server.places import FullError, Places
from clada.server.scheduler import Scheduler

SECONDS = 60
SAMPLED = SamplingConfig(temperature=1.0, top_p=0.95)
RNG = np.random.default_rng(0)
PROMPTS = [[int(token) for token in RNG.integers(1, 500, count)] for count in (3, 20, 1, 33, 9, 40)]


@dataclass
class Asked:
    """A job, and the events that came of it."""

    job: Job
    events: "queue.Queue[Event]"
    seen: list[Event] = field(default_factory=list)

    def next(self) -> Event:
        """Wait for an event."""
        self.seen.append(self.events.get(timeout=SECONDS))
        return self.seen[-1]

    def ended(self) -> Event:
        """Wait for the last event."""
        while True:
            event = self.next()
            if isinstance(event, Failed) or (isinstance(event, Generated) and event.piece.finish is not None):
                return event

    @property
    def tokens(self) -> list[int]:
        """Tokens that came."""
        return [e.piece.token for e in self.seen if isinstance(e, Generated) and e.piece.stats is not None]


def job(session: Session, prompt: list[int], config: GenerationConfig, share: float | None = None, **more) -> Asked:
    events: queue.Queue[Event] = queue.Queue()
    choice = Choice(config.sampling or SamplingConfig(), session.end_tokens)
    return Asked(Job(prompt, choice, config, session.effort_for(share), events.put, **more), events)


def ask(scheduler: Scheduler, session: Session, prompt: list[int], config: GenerationConfig, **more) -> Asked:
    asked = job(session, prompt, config, **more)
    scheduler.places.take(1)
    scheduler.submit(asked.job)
    return asked


@pytest.fixture(params=["inputs_artifact", "tiny_artifact"])
def session(request) -> Session:
    """One whose texts are gathered, and one whose texts take turns, as their pools are chosen."""
    return Session(request.getfixturevalue(request.param), threads=1)


@pytest.fixture
def inputs_session(inputs_artifact) -> Session:
    return Session(inputs_artifact, threads=1)


@pytest.fixture
def scheduling():
    """A function that makes a scheduler, which is stopped at the end; nothing of it is left then."""
    made = []

    def make(session: Session, **options) -> Scheduler:
        # Gathered, as more can go wrong there.
        made.append(Scheduler(session, **{"slots": 4, "queue": 16, "crossover": Crossover(1000), **options}))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.stop(0)
        scheduler.join()
        assert scheduler.places.taken == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "clada scheduler"]


def alone(session: Session, prompt: list[int], config: GenerationConfig) -> list[int]:
    return session.generate(prompt, config)[0].tokens


@pytest.mark.parametrize("crossover", [None, Crossover(0), Crossover(30), Crossover(1000)])
def test_each_text_is_the_one_it_is_alone(session, scheduling, crossover):
    """Of other lengths, seeds and prompts: some join while others go on, as there are more than slots.

    As measured here, in turns, in a batch until they are longer, and always in a batch.
    """
    configs = [GenerationConfig(12 + 5 * n, sampling=SamplingConfig(1.0, seed=n)) for n in range(len(PROMPTS))]
    scheduler = scheduling(session, crossover=crossover)
    asked = [ask(scheduler, session, prompt, config) for prompt, config in zip(PROMPTS, configs, strict=True)]
    for each in asked:
        each.ended()
    expected = [alone(session, prompt, config) for prompt, config in zip(PROMPTS, configs, strict=True)]
    assert [each.tokens for each in asked] == expected


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [
        # A batch is 2 s faster at 16 tokens and 2 s slower at 64.
        ({("single", 16): 1, ("portable", 16): 2, ("single", 64): 1, ("portable", 64): 6}, 40),
        ({("single", 16): 1, ("portable", 16): 5, ("single", 64): 1, ("portable", 64): 9}, 0),
        ({("single", 16): 1, ("portable", 16): 3, ("single", 64): 2, ("portable", 64): 3}, 128),
    ],
)
def test_the_crossover_is_where_both_take_as_long(inputs_session, monkeypatch, seconds, tokens):
    """By a clock that each step moves on; the context has 128 tokens."""
    now = [0.0]
    step = Session.decode

    def timed(session, state, *given):
        kind = "single" if len(state.mask) == 1 else "portable"
        length = min((16, 64), key=lambda length: abs(length - state.mask.shape[1]))
        now[0] += seconds[kind, length]
        return step(session, state, *given)

    monkeypatch.setattr(Session, "decode", timed)
    monkeypatch.setattr("clada.server.crossover.time.perf_counter", lambda: now[0])
    found = measure_crossover(inputs_session)
    assert found.tokens == tokens
    assert found.longest(4) == tokens
    assert found.longest(1) == 0


def test_gathered_texts_have_the_logits_they_have_alone(inputs_session):
    """In groups that texts join and leave, down to one, which then is on the graph for one text."""
    session = inputs_session
    whole = [session.prefill([prompt]) for prompt in PROMPTS]
    texts = [(session.prefill([prompt]), 0) for prompt in PROMPTS[:3]]
    assert can_gather(session)

    def step(texts: list, names: list[int]) -> list:
        state = gather(session, texts)
        assert len(state.mask) == len(texts)
        assert state.mask.shape[1] == state.mask.sum(axis=1).max()
        for token in (5, 9):
            session.decode(state, [token + name for name in names])
            for row, name in enumerate(names):
                session.decode(whole[name], [token + name])
                np.testing.assert_allclose(state.logits[row], whole[name].logits[0], rtol=0, atol=1e-4)
        return [(state, row) for row in range(len(texts))]

    texts = step(texts, [0, 1, 2])
    texts = step([*texts, (session.prefill([PROMPTS[3]]), 0)], [0, 1, 2, 3])
    texts = step([texts[1], texts[3]], [1, 3])
    texts = step([texts[1]], [3])
    assert texts[0][0].model is session.models.of("single")


def test_another_share_of_the_bytes_is_for_one_text_alone(inputs_session, scheduling):
    """Dense and sparse texts in one batch; each reads what was asked for."""
    session, config = inputs_session, GenerationConfig(12, sampling=SAMPLED)
    scheduler = scheduling(session)
    asked = {share: ask(scheduler, session, PROMPTS[1], config, share=share) for share in (1.0, None, 0.8)}
    for share, each in asked.items():
        each.ended()
        read = [e.piece.stats.read_fraction for e in each.seen if isinstance(e, Generated) and e.piece.stats]
        other = Session(session.artifact.model, threads=1, bytes=share)
        expected = other.generate(PROMPTS[1], config)[0]
        assert each.tokens == expected.tokens
        np.testing.assert_allclose(read, [stats.read_fraction for stats in expected.stats], atol=1e-3)
    assert asked[1.0].seen[1].piece.stats.read_fraction == 1


def test_a_share_of_an_artifact_that_skips_neurons_is_refused(tiny_artifact):
    with pytest.raises(CladaError, match="skips neurons"):
        Session(tiny_artifact, threads=1).effort_for(0.7)


def endless(session: Session, scheduler: Scheduler) -> Asked:
    """A text that goes on until the context is full."""
    return ask(scheduler, session, PROMPTS[0], GenerationConfig(sampling=SamplingConfig(1.0)))


def test_a_canceled_text_frees_its_slot(session, scheduling, slow):
    scheduler = scheduling(session, slots=1)
    first = endless(session, scheduler)
    second = ask(scheduler, session, PROMPTS[1], GenerationConfig(2))
    waits = ask(scheduler, session, PROMPTS[1], GenerationConfig(2))
    first.next()
    first.next()
    scheduler.cancel(first.job)
    scheduler.cancel(waits.job)
    assert second.ended().piece.finish == "length"
    assert len(first.tokens) < 100
    until = time.monotonic() + SECONDS
    while scheduler.places.taken and time.monotonic() < until:
        time.sleep(0.01)
    assert scheduler.places.taken == 0
    assert waits.events.empty()


def test_texts_go_on_in_order_of_arrival_and_fairly(inputs_session, scheduling, slow):
    """With two slots the third begins when one of the others has ended; both go on a token a round."""
    scheduler = scheduling(inputs_session, slots=2)
    order: list[tuple[int, int]] = []
    asked = []
    for name, count in enumerate((6, 12, 3)):
        each = job(inputs_session, PROMPTS[name], GenerationConfig(count, sampling=SamplingConfig()))
        put = each.job.emit
        each.job.emit = lambda event, name=name, put=put: (order.append((name, len(order))), put(event))
        asked.append(each)
        scheduler.places.take(1)
        scheduler.submit(each.job)
    for each in asked:
        each.ended()
    names = [name for name, _ in order]
    assert names.index(2) > len(names) - 1 - names[::-1].index(0)
    both = names[names.index(1) + 1 : len(names) - 1 - names[::-1].index(0)]
    assert abs(both.count(0) - both.count(1)) <= 1


def test_a_long_prompt_is_read_between_the_steps_of_others(inputs_session, scheduling):
    """Of a prompt of 40 tokens, read 8 at a time, the text is the one that it is where it is read at once."""
    scheduler = scheduling(inputs_session, part=8)
    order = []
    first = job(inputs_session, PROMPTS[0], GenerationConfig(60, sampling=SamplingConfig()))
    second = job(inputs_session, PROMPTS[5], GenerationConfig(8, sampling=SamplingConfig()))
    for name, each in (("first", first), ("second", second)):
        put = each.job.emit
        each.job.emit = lambda event, name=name, put=put: (order.append(name), put(event))
    scheduler.places.take(2)
    scheduler.submit(first.job)
    first.next()
    scheduler.submit(second.job)
    second.ended()
    first.ended()
    assert second.tokens == alone(inputs_session, PROMPTS[5], GenerationConfig(8, sampling=SamplingConfig()))
    assert first.tokens == alone(inputs_session, PROMPTS[0], GenerationConfig(60, sampling=SamplingConfig()))


def test_a_prompt_that_was_read_is_not_read_again(inputs_session, scheduling):
    """Its text is the one without the cache; what is not used is let go."""
    session, config = inputs_session, GenerationConfig(10, sampling=SAMPLED)
    system = [int(token) for token in np.random.default_rng(1).integers(1, 500, 30)]
    scheduler = scheduling(session, prefix_tokens=200)
    reused = []
    for question in (PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[4]):
        asked = ask(scheduler, session, [*system, *question], config)
        asked.ended()
        reused.append(asked.seen[0])
        assert asked.tokens == alone(session, [*system, *question], config)
    # Of a prompt that is there whole two tokens are read again, as one alone would be decoded.
    assert reused == [PromptRead(0), PromptRead(30), PromptRead(31), PromptRead(30)]
    for seed in range(5):
        other = [int(token) for token in np.random.default_rng(seed + 2).integers(1, 500, 50)]
        ask(scheduler, session, other, GenerationConfig(1)).ended()
    assert 0 < scheduler._prefixes.tokens <= 200
    assert ask(scheduler, session, [*system, *PROMPTS[0]], config).next() == PromptRead(0)


def test_only_the_failing_text_fails(inputs_session, scheduling):
    class Broken:
        def allowed(self):
            raise CladaError("no grammar")

        def take(self, token):
            raise AssertionError

    scheduler = scheduling(inputs_session)
    config = GenerationConfig(10, sampling=SamplingConfig())
    bad = ask(scheduler, inputs_session, PROMPTS[0], config, guide=Broken())
    good = ask(scheduler, inputs_session, PROMPTS[1], config)
    assert bad.ended() == Failed("no grammar")
    assert good.ended().piece.finish is not None
    assert good.tokens == alone(inputs_session, PROMPTS[1], config)


def test_after_a_step_that_fails_others_are_read(inputs_session, scheduling, monkeypatch):
    scheduler = scheduling(inputs_session)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "decode", lambda *_: (_ for _ in ()).throw(RuntimeError("secret")))
        failed = ask(scheduler, inputs_session, PROMPTS[0], GenerationConfig(5)).ended()
        assert failed.kind == "error"
        assert "secret" not in failed.reason
    assert ask(scheduler, inputs_session, PROMPTS[0], GenerationConfig(5)).ended().piece.finish is not None


def test_a_guide_says_which_tokens_come(inputs_session, scheduling):
    class Even:
        def allowed(self):
            return np.arange(inputs_session.manifest.model.vocabulary_size) % 2 == 0

        def take(self, token):
            assert token % 2 == 0

    asked = ask(
        scheduling(inputs_session), inputs_session, PROMPTS[0], GenerationConfig(20, sampling=SAMPLED), guide=Even()
    )
    asked.ended()
    assert len(asked.tokens) > 3
    assert not any(token % 2 for token in asked.tokens)


def test_log_probabilities_are_the_models(inputs_session, scheduling):
    asked = ask(
        scheduling(inputs_session), inputs_session, PROMPTS[0], GenerationConfig(6, sampling=SAMPLED), logprobs=3
    )
    asked.ended()
    for event in asked.seen[1:]:
        if event.piece.stats is not None:
            assert event.logprobs.chosen == pytest.approx(-event.piece.stats.surprisal, abs=1e-4)
            values = [value for _, value in event.logprobs.likeliest]
            assert values == sorted(values, reverse=True)
            assert len(values) == 3


def test_log_probabilities_sum_to_one():
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float16)
    found = logprobs_of(logits, 7, 1000)
    assert sum(np.exp(value) for _, value in found.likeliest) == pytest.approx(1)
    assert dict(found.likeliest)[7] == found.chosen
    assert logprobs_of(logits, 7, 0).likeliest == ()


def test_where_there_is_no_place_nothing_is_taken():
    places = Places(3)
    places.take(2)
    with pytest.raises(FullError, match="2 of 3"):
        places.take(2)
    places.take(1)
    places.give_back(3)
    assert places.taken == 0


def test_stopping_ends_what_waits_and_lets_go_on_what_goes_on(session, scheduling, slow):
    scheduler = scheduling(session, slots=1)
    goes_on = ask(scheduler, session, PROMPTS[0], GenerationConfig(10, sampling=SamplingConfig()))
    waits = ask(scheduler, session, PROMPTS[1], GenerationConfig(10))
    goes_on.next()
    scheduler.stop(SECONDS)
    assert waits.ended() == Failed("the server is stopping", "stopping")
    assert goes_on.ended().piece.finish is not None
    scheduler.join()
    assert not scheduler.is_alive
    assert ask(scheduler, session, PROMPTS[1], GenerationConfig(10)).ended().kind == "stopping"


def test_stopping_ends_what_goes_on_too_long(session, scheduling, slow):
    scheduler = scheduling(session)
    asked = endless(session, scheduler)
    asked.next()
    scheduler.stop(0.05)
    assert asked.ended() == Failed("the server is stopping", "stopping")


def test_metrics_tell_of_what_was_read(inputs_session, scheduling):
    metrics = Metrics()
    scheduler = scheduling(inputs_session, metrics=metrics, prefix_tokens=500)
    for _ in range(2):
        ask(scheduler, inputs_session, PROMPTS[1], GenerationConfig(4, sampling=SamplingConfig())).ended()
    found = dict(line.rsplit(" ", 1) for line in metrics.text().decode().splitlines() if not line.startswith("#"))
    assert float(found['clada_tokens_total{kind="prompt"}']) == 40
    assert float(found['clada_tokens_total{kind="generated"}']) == 8
    assert float(found["clada_prefix_tokens_reused_total"]) == 18
    assert float(found["clada_time_to_first_token_seconds_count"]) == 2
    assert float(found["clada_slots_in_use"]) == 0
    assert 0 < float(found["clada_bytes_read_share_sum"]) / float(found["clada_bytes_read_share_count"]) <= 1
