"""Generation from the demo model's artifact."""

import dataclasses
import gc
import json
import multiprocessing
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from clada.contract.artifact import Artifact
from clada.contract.pool import CLOSED_TOKENS
from clada.errors import CladaError
from clada.exporter.graph.greedy import greedy_tokens
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from clada.runtime import GenerationConfig, SamplingConfig, Session, TokenStats
from clada.runtime.detokenize import TextStream
from clada.runtime.model_settings import default_sampling, end_tokens
from clada.runtime.sampling import probabilities
from clada.runtime.telemetry import mean_stats
from tests.conftest import DEMO_MODEL
from tests.support.checkpoints import random_model, tiny_tokenizer
from tests.support.plain_folder import PlainFolder

PROMPTS = [
    "def parse_args(argv):\n",
    "import os\nimport sys\n\nclass Reader:\n    def __init__(self, path):\n        self.path",
    "for i in range(10):\n    print(",
]
SAMPLED = GenerationConfig(max_new_tokens=24, sampling=SamplingConfig(temperature=0.8, top_k=40, top_p=0.95, seed=7))
GREEDY = GenerationConfig(max_new_tokens=24, sampling=SamplingConfig())
SEEN = [3, 5, 5, 40]


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batch_gives_the_tokens_of_each_alone(demo_session, config):
    together = demo_session.generate(PROMPTS, config)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        alone = demo_session.generate(prompt, config)[0]
        assert completion.tokens == alone.tokens
        assert completion.text == alone.text
        assert completion.finish == alone.finish
        for ours, theirs in zip(completion.stats, alone.stats, strict=True):
            for field in dataclasses.fields(TokenStats):
                values = getattr(ours, field.name), getattr(theirs, field.name)
                # Rounding may carry a neuron or two across a threshold.
                np.testing.assert_allclose(*values, rtol=1e-2, atol=2 if field.name == "active" else 1e-3)


def test_stream_is_the_completion_piece_by_piece(demo_session):
    pieces = list(demo_session.stream(PROMPTS[0], GREEDY))
    completion = demo_session.generate(PROMPTS[0], GREEDY)[0]
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [piece.token for piece in pieces] == completion.tokens
    assert [piece.finish for piece in pieces] == [None] * 23 + ["length"]
    assert len(completion.tokens) == 24


def test_greedy_tokens_are_those_of_pytorch(demo_artifact, demo_session):
    """The same tokens as the patched model in PyTorch: prefill dense, decode sparse, load signal, pools and all.

    So many of one text that its pool is opened once for having been closed for long.
    """
    model, _ = load_model(str(DEMO_MODEL), torch.float32)
    sparsify(model)
    calibrated = Calibrated.from_graph(demo_artifact)
    for prompt, count in zip(PROMPTS, (24, CLOSED_TOKENS + 8, 24), strict=True):
        ids = demo_session.encode(prompt)
        ours = demo_session.generate(prompt, GenerationConfig(max_new_tokens=count))[0].tokens
        assert len(ours) == count
        assert ours == greedy_tokens(model, calibrated, demo_session.pool_policy, ids, len(ours))


def test_decode_skips_neurons_and_says_so(demo_session):
    stats = demo_session.generate(PROMPTS, SAMPLED)[1].stats
    sparsity = demo_session.manifest.policy.target_sparsity
    assert np.mean([s.active_fraction for s in stats]) == pytest.approx(1 - sparsity, abs=0.15)
    assert all(0 < s.active_fraction < 1 for s in stats)
    assert all(s.surprisal >= 0 and s.entropy >= 0 and 0 <= s.load <= 1 for s in stats)
    assert len({s.load for s in stats}) > 5


def test_telemetry_counts_what_a_token_was_given(demo_session):
    """Neurons computed and allowed by layer, and the bytes that follow: gate of the pool, up and down of the active."""
    neurons = np.array(demo_session.manifest.model.neurons)
    sizes = demo_session.manifest.pool.sizes
    opens = demo_session.manifest.calibration.reanalysis_load
    completions = demo_session.generate(PROMPTS, dataclasses.replace(SAMPLED, max_new_tokens=80))
    opened = []
    for completion in completions:
        closed = 0
        for token in completion.stats:
            is_open = token.load >= np.float32(opens) or closed == CLOSED_TOKENS - 1
            assert list(token.pool) == (neurons.tolist() if is_open else list(sizes))
            assert all(0 < active <= pool for active, pool in zip(token.active, token.pool, strict=True))
            assert token.active_fraction == pytest.approx(sum(token.active) / neurons.sum())
            read = (np.array(token.pool) + 2 * np.array(token.active)).sum() / (3 * neurons.sum())
            assert token.read_fraction == pytest.approx(read)
            closed = 0 if is_open else closed + 1
            opened.append(is_open)
    assert 0 < np.mean(opened) < 0.2


def test_mean_stats_are_means_over_tokens():
    tokens = [
        TokenStats(1.0, 2.0, 0.25, 0.5, 0.6, (3, 4), (8, 8)),
        TokenStats(3.0, 1.0, 0.75, 0.4, 0.5, (1, 2), (8, 8)),
    ]
    assert dataclasses.astuple(mean_stats(tokens)) == pytest.approx((2.0, 1.5, 0.5, 0.45, 0.55))
    assert mean_stats(tokens[:1]).read_fraction == 0.6
    assert all(np.isnan(value) for value in dataclasses.astuple(mean_stats([])))


def test_telemetry_is_of_the_tokens_distribution(demo_session):
    """Surprisal and entropy are those of the logits that the token was drawn from."""
    state = demo_session.prefill([demo_session.encode(PROMPTS[0])])
    log_p = state.logits[0] - np.logaddexp.reduce(state.logits[0].astype(np.float64))
    token = int(log_p.argsort()[-5])
    stats = demo_session.decode(state, [token])[0]
    assert stats.surprisal == pytest.approx(-log_p[token], rel=1e-4)
    assert stats.entropy == pytest.approx(-(np.exp(log_p) * log_p).sum(), rel=1e-4)


def test_harder_text_computes_more_neurons(demo_session):
    """The load loosens the thresholds: surprising tokens are given more neurons than expected ones."""
    stats = [
        s for c in demo_session.generate(PROMPTS, dataclasses.replace(SAMPLED, max_new_tokens=64)) for s in c.stats
    ]
    median = np.median([s.load for s in stats])
    hard = [s.active_fraction for s in stats if s.load > median]
    easy = [s.active_fraction for s in stats if s.load <= median]
    assert np.mean(hard) > np.mean(easy)


def test_seed_decides(demo_session):
    texts = [
        demo_session.generate(
            PROMPTS[0], dataclasses.replace(SAMPLED, sampling=dataclasses.replace(SAMPLED.sampling, seed=s))
        )[0].text
        for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_string_ends_the_text_and_is_not_in_it(demo_session):
    whole = demo_session.generate(PROMPTS[0], GREEDY)[0].text
    stop = whole[10:13]
    stopped = demo_session.generate(PROMPTS[0], dataclasses.replace(GREEDY, stop=(stop, "\0")))[0]
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish == "stop"


def test_end_token_ends_the_text(demo_session, monkeypatch):
    first = demo_session.generate(PROMPTS[0], GREEDY)[0].tokens
    monkeypatch.setattr(demo_session, "end_tokens", frozenset([first[3]]))
    completion = demo_session.generate(PROMPTS[0], GREEDY)[0]
    assert completion.finish == "end"
    assert completion.tokens == first[: first.index(first[3])]


def test_ended_texts_do_not_disturb_the_others(demo_session):
    """One text of a batch stops early; the rest go on as if alone."""
    whole = demo_session.generate(PROMPTS, GREEDY)
    stop = next(text for text in whole[0].text.split() if text not in whole[1].text)
    config = dataclasses.replace(GREEDY, stop=(stop,))
    together = demo_session.generate(PROMPTS, config)
    assert together[0].finish == "stop"
    assert together[1].tokens == whole[1].tokens


def test_context_ends_the_text(demo_session):
    ids = list(range(300, 300 + 508))
    pieces = list(demo_session.stream(ids, GenerationConfig(max_new_tokens=50)))
    assert len(pieces) == 512 - 508
    assert pieces[-1].finish in ("length", "end")


def test_prompt_longer_than_the_context_is_refused(demo_session):
    with pytest.raises(CladaError, match=r"the prompt has \d+ tokens; the model's context is 512"):
        demo_session.generate("word " * 600)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "prompt is empty"), ([1] * 512, "the prompt has 512 tokens"), ([5000], "holds token 5000")],
)
def test_token_ids_are_checked_like_text(demo_session, ids, message):
    with pytest.raises(CladaError, match=message):
        demo_session.stream(ids)


def test_no_prompts_no_completions(demo_session):
    assert demo_session.generate([]) == []


def test_empty_prompt_begins_a_text(demo_session):
    """The tokenizer's own start token is a prompt."""
    assert demo_session.generate("", GenerationConfig(max_new_tokens=4))[0].tokens


def test_text_streams_whole_characters(demo_session):
    """Characters of several tokens come out whole, and the pieces add up to the text."""
    text = "naïve — 日本語 🎉 done"
    ids = demo_session.encode(text, add_special_tokens=False)
    stream = TextStream(demo_session.tokenizer, [], ())
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    assert "\ufffd" not in "".join(pieces)
    assert len(ids) > len(text.split())


def test_stop_string_across_tokens_is_never_shown(demo_session):
    ids = demo_session.encode("return value\n\nclass Other:\n    pass", add_special_tokens=False)
    stream = TextStream(demo_session.tokenizer, [], ["\n\nclass"])
    shown = ""
    for token in ids:
        shown += stream.push(token)
        if stream.stopped:
            break
    assert shown == "return value"


def test_held_back_text_is_shown_when_no_stop_follows(demo_session):
    ids = demo_session.encode("a\n\nb", add_special_tokens=False)
    stream = TextStream(demo_session.tokenizer, [], ["\n\nclass"])
    assert "".join(stream.push(token) for token in ids) + stream.flush() == "a\n\nb"


def test_token_outside_the_vocabulary_is_refused(demo_artifact):
    """A tokenizer may know tokens that were added to it and never to the model."""
    session = Session(demo_artifact)
    session.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(CladaError, match=r"token 4096 \(<extra>\), which the model's vocabulary of 4096 does not"):
        session.generate("a <extra> b")


@pytest.mark.fault("text", "the model's own sampling settings", now="the defaults, as transformers reads them")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": False, "temperature": 0.6},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1},
        {"do_sample": True, "temperature": 1.5, "min_p": 0.2, "top_k": 0},
        {"do_sample": True, "temperature": None, "top_k": None},
        {"repetition_penalty": 1.3},
    ],
)
def test_default_sampling_is_that_of_transformers(tmp_path, settings):
    """The distribution that transformers' own logits processors make of the same configuration."""
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    config = transformers.GenerationConfig.from_pretrained(tmp_path)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    logits = np.random.default_rng(0).standard_normal(400).astype(np.float32) * 3
    model = random_model("llama", vocab_size=400)
    processors = model._get_logits_processor(config, torch.device("cpu"))
    scores = processors(torch.tensor([SEEN]), torch.from_numpy(logits)[None])[0]
    expected = scores.softmax(-1).numpy() if config.do_sample else np.eye(400)[int(scores.argmax())]
    ours = probabilities(
        logits, np.array(SEEN), default_sampling(json.loads((tmp_path / "generation_config.json").read_text()))
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_settings_of_the_model_that_are_not_carried_out_are_named():
    with pytest.warns(UserWarning, match="no_repeat_ngram_size=3, which has no effect here"):
        default_sampling({"no_repeat_ngram_size": 3, "num_beams": 1, "typical_p": None})
    with pytest.raises(CladaError, match=r"generation_config\.json: temperature is 'hot'; it must be a number"):
        default_sampling({"do_sample": True, "temperature": "hot"})


def test_sampling_that_nobody_asked_for_is_the_models(demo_session, monkeypatch):
    monkeypatch.setattr(demo_session, "default_sampling", SAMPLED.sampling)
    unasked = demo_session.generate(PROMPTS[0], GenerationConfig(24))[0].tokens
    assert unasked == demo_session.generate(PROMPTS[0], SAMPLED)[0].tokens
    assert unasked != demo_session.generate(PROMPTS[0], GREEDY)[0].tokens


def test_text_goes_on_until_the_context_ends(tiny_artifact):
    session = Session(tiny_artifact, threads=1)
    completion = session.generate("def f(x):", GenerationConfig(sampling=SamplingConfig()))[0]
    assert completion.finish == "length"
    assert len(session.encode("def f(x):")) + len(completion.tokens) == session.context_length == 128


def test_a_closed_session_reads_nothing(tiny_artifact):
    with Session(tiny_artifact, threads=1) as session:
        state = session.prefill([[5, 6]])
        model = weakref.ref(state.model)
    uses = [session.__enter__, partial(session.prefill, [[5, 6]]), partial(session.decode, state, [7])]
    for use in [*uses, partial(session.generate, "a"), lambda: session.kernels]:
        with pytest.raises(CladaError, match="the session is closed: make another"):
            use()
    del state, uses, use
    gc.collect()
    assert model() is None


@pytest.mark.fault("text", "a stop string that is not in a tuple", now="taken as one stop string")
def test_a_single_string_is_one_stop_string(demo_session):
    whole = demo_session.generate(PROMPTS[0], GREEDY)[0].text
    stop = whole[10:13]
    assert demo_session.generate(PROMPTS[0], GenerationConfig(24, stop))[0].text == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be an integer"),
        ({"stop": ("a", "")}, "stop holds ''; it must hold strings that are not empty"),
        ({"stop": 5}, "stop holds 5; it must hold strings"),
        ({"stop_tokens": ("a",)}, "a stop token is 'a'; it must be an integer"),
        ({"stop_tokens": -1}, "a stop token is -1; it must be 0 or more"),
        ({"sampling": 0.7}, "sampling is 0.7; it must be a SamplingConfig"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(CladaError, match=message):
        GenerationConfig(**settings)


def snapshot(state) -> list:
    """Everything by which a state goes on."""
    arrays = [state.mask, state.logits, *state.masks]
    if state.pools is not None:
        pools = state.pools
        arrays += [*pools.masks, *pools.score, pools.since_opened, pools.since_chosen, pools.evidence]
    return [np.array(array) for array in arrays]


@pytest.mark.fault("results", "a decode step that fails", now="the state is as it was, and goes on")
@pytest.mark.parametrize("texts", [1, 2], ids=["in place", "portable"])
def test_a_failed_step_leaves_the_state_as_it_was(demo_session, texts, monkeypatch):
    prompts = [demo_session.encode(prompt) for prompt in PROMPTS[:texts]]
    state, expected = demo_session.prefill(prompts), demo_session.prefill(prompts)
    failures = [
        lambda: demo_session.decode(state, [99999] * texts),
        lambda: demo_session.decode(state, [-1] * texts),
        lambda: demo_session.decode(state, [5] * (texts + 1)),
        lambda: demo_session.decode(state, [5] * texts, [True] * (texts + 1)),
        lambda: demo_session.decode(state, ["a"] * texts),
        lambda: demo_session.decode(state, [2.5] * texts),
        lambda: demo_session.decode(state, []),
    ]
    for step, token in enumerate((300, 301, 302)):
        before = snapshot(state)
        for fail in failures:
            with pytest.raises(CladaError, match=r"the step|the state has"):
                fail()
            for now, then in zip(snapshot(state), before, strict=True):
                np.testing.assert_array_equal(now, then)
        with monkeypatch.context() as patched:
            # ONNX Runtime itself fails, after it has written into the cache.
            run = type(state.model).step
            patched.setattr(type(state.model), "step", lambda *given, run=run: [run(*given), 1 / 0])
            with pytest.raises(ZeroDivisionError):
                demo_session.decode(state, [9] * texts)
        for now, then in zip(snapshot(state), before, strict=True):
            np.testing.assert_array_equal(now, then)
        copied = state.copy()
        theirs = demo_session.decode(expected, [token] * texts)
        for ours in (state, copied):
            assert demo_session.decode(ours, [token] * texts) == theirs, step
            np.testing.assert_array_equal(ours.logits, expected.logits)


def test_a_text_as_long_as_the_context_reads_no_more(tiny_artifact):
    session = Session(tiny_artifact, threads=1)
    for texts in (1, 2):
        state = session.prefill([[5] * 127] * texts)
        session.decode(state, [6] * texts)
        with pytest.raises(CladaError, match="the text has 129 tokens; the model's context is 128"):
            session.decode(state, [6] * texts)


@pytest.mark.fault("native", "one State used by several threads", now="one error in all threads but one")
@pytest.mark.parametrize("texts", [1, 2], ids=["in place", "portable"])
def test_a_state_is_for_one_thread_at_a_time(demo_session, texts):
    """While one thread is in a step, no other gets in; the state then holds whole steps only."""
    prompts = [demo_session.encode(PROMPTS[0])] * texts
    state, expected = demo_session.prefill(prompts), demo_session.prefill(prompts)
    done: list[int] = []
    refused: list[str] = []

    def step() -> None:
        try:
            demo_session.decode(state, [300] * texts)
            done.append(1)
        except CladaError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=lambda: [step() for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 100
    assert all("the state is in use by another thread" in message for message in refused)
    for _ in done:
        demo_session.decode(expected, [300] * texts)
    np.testing.assert_array_equal(state.logits, expected.logits)
    with state.reading():
        for use in (state.copy, lambda: demo_session.decode(state, [300] * texts)):
            with pytest.raises(CladaError, match=r"give each thread its own, by prefill or State\.copy"):
                use()
    demo_session.decode(state, [300] * texts)


@pytest.mark.fault("native", "one Session used by several threads", now="each gets what it would get alone")
def test_threads_share_a_session(tiny_artifact):
    session = Session(tiny_artifact, threads=1)
    config = GenerationConfig(16, sampling=SamplingConfig())
    given: dict[int, list] = {}

    def run(index: int) -> None:
        prompts = PROMPTS[index % 3] if index % 2 else PROMPTS
        given[index] = [completion.tokens for completion in session.generate(prompts, config)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = Session(tiny_artifact, threads=1)
    for index in range(6):
        expected = alone.generate(PROMPTS[index % 3] if index % 2 else PROMPTS, config)
        assert given[index] == [completion.tokens for completion in expected]


def test_graphs_are_loaded_once_by_all_threads(tiny_artifact, monkeypatch):
    session, loaded = Session(tiny_artifact, threads=1), []
    load = Artifact.load_graph
    monkeypatch.setattr(Artifact, "load_graph", lambda *given: (loaded.append(1), time.sleep(0.05), load(*given))[-1])
    threads = [threading.Thread(target=lambda: session.kernels) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1


@pytest.mark.fault("native", "a Session made before fork()", now="works in the child; its States are refused there")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_goes_on_in_a_forked_process(tiny_artifact, threads):
    config = GenerationConfig(8, sampling=SamplingConfig())
    with Session(tiny_artifact, threads=threads) as session:
        expected = session.generate(PROMPTS[0], config)[0].tokens
        state = session.prefill([[5, 6]])
        context = multiprocessing.get_context("fork")
        answers = context.Queue()

        def child() -> None:
            answers.put([completion.tokens for completion in session.generate([PROMPTS[0], PROMPTS[0]], config)])
            answers.put(session.generate(PROMPTS[0], config)[0].tokens)
            for use in (state.copy, lambda: session.decode(state, [7])):
                with pytest.raises(CladaError) as caught:
                    use()
                answers.put(str(caught.value))

        with session.models._lock:  # as if another thread were loading
            process = context.Process(target=child)
            process.start()
        try:
            assert answers.get(timeout=60) == [expected, expected]
            assert answers.get(timeout=60) == expected
            for _ in range(2):
                assert "the state was made before fork(), in another process" in answers.get(timeout=60)
            process.join(60)
            assert process.exitcode == 0
        finally:
            process.kill()
        assert session.generate(PROMPTS[0], config)[0].tokens == expected


def test_threads_change_no_bit(demo_artifact):
    """Of either graph, in prefill and decode."""
    states = []
    for threads in (1, 2):
        session = Session(demo_artifact, threads=threads)
        for prompts in (PROMPTS[:1], PROMPTS):
            state = session.prefill([session.encode(prompt) for prompt in prompts])
            stats = [session.decode(state, [token] * len(prompts)) for token in range(300, 312)]
            states.append((state, stats))
    for (one, stats_of_one), (two, stats_of_two) in zip(states[:2], states[2:], strict=True):
        np.testing.assert_array_equal(one.logits, two.logits)
        assert stats_of_one == stats_of_two


@pytest.mark.fault("text", "a prompt given as token ids", now="continued; what is no token id is one error")
def test_token_ids_are_prompts(demo_session):
    text = demo_session.generate(PROMPTS[0], GREEDY)[0]
    ids = demo_session.encode(PROMPTS[0])
    for prompts in (ids, [ids], np.array(ids), [np.array(ids)], tuple(ids)):
        assert demo_session.generate(prompts, GREEDY)[0].tokens == text.tokens
    assert len(demo_session.generate([ids, PROMPTS[1]], GREEDY)) == 2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5, 2.5]], "holds what is not a token id"),
        ([["a"]], "holds what is not a token id"),
        ([[[5]]], "holds what is not a token id"),
        ([[5, 2**70]], "holds what is not a token id"),
        ([-1], "holds token -1, which"),
        ([None], "the prompt is None; it must be a sequence of token ids"),
        ([b"abc"], "the prompt is b'abc'; it must"),
        ([[]], "the prompt is empty"),
    ],
)
def test_prompts_that_are_none_are_refused(demo_session, prompts, message):
    with pytest.raises(CladaError, match=message):
        demo_session.generate(prompts)
    with pytest.raises(CladaError):
        demo_session.prefill(prompts)


def test_stop_tokens_end_the_text(demo_session):
    whole = demo_session.generate(PROMPTS[0], GREEDY)[0].tokens
    stop = (whole[5], 4000)
    stopped = demo_session.generate(PROMPTS[0], dataclasses.replace(GREEDY, stop_tokens=stop))[0]
    assert stopped.finish == "stop"
    assert stopped.tokens == whole[: whole.index(whole[5])]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Of some templates that models come with: what ends an answer. The tokenizer's own end of a text is "<end>".
TEMPLATES = {
    "ChatML": (CHATML, "<|im_end|>"),
    "Llama 2": (LLAMA_2, "<end>"),
    "Llama 3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
        "m.content | trim + '<|eot_id|>' }}{% endfor %}",
        "<|eot_id|>",
    ),
    "Gemma": (
        "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "<start_of_turn>{{ role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}",
        "<end_of_turn>",
    ),
    "plain": ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}", None),
    "nothing after an answer": ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", None),
    "none": (None, None),
    "refuses": ("{{ raise_exception('no') }}", None),
    "of no such language": ("{% for %}", None),
}


@pytest.mark.fault("text", "a model that ends its turn with another token than its text", now="the text ends there")
@pytest.mark.parametrize("name", TEMPLATES)
def test_end_tokens_are_those_of_all_files(tmp_path, name):
    """Those of the generation configuration, of the tokenizer, and the one that the template writes after an answer."""
    template, ends = TEMPLATES[name]
    tokenizer = tiny_tokenizer().backend_tokenizer
    turns = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<end_of_turn>x"]
    tokenizer.add_special_tokens(turns)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "<end>"}}))
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    expected = {tokenizer.token_to_id(word) for word in ("<end>", ends) if word}
    assert end_tokens(PlainFolder(tmp_path), {}, tokenizer) == expected
    assert end_tokens(PlainFolder(tmp_path), {"eos_token_id": 7}, tokenizer) == expected | {7}
    assert end_tokens(PlainFolder(tmp_path), {"eos_token_id": [7, 8]}, tokenizer) == expected | {7, 8}
    for wrong in ("x", [1, "x"], True, 1.5):
        with pytest.raises(CladaError, match=r"gives eos_token_id .*; it must be integers"):
            end_tokens(PlainFolder(tmp_path), {"eos_token_id": wrong}, tokenizer)
