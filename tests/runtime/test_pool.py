"""Pools: the scores that choose them, the times of new choices, and that they follow a text wherever it turns."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from clada.contract.pool import (
    CLOSED_TOKENS,
    MEMORY_TOKENS,
    REFRESH_TOKENS,
    PoolPolicy,
    Pools,
    choose_pools,
    overdue,
    update_pools,
)
from clada.runtime import Session
from tests.conftest import HELDOUT

NEURONS = (12, 20)
SIZES = [4, 7]


def make_policy(prior_tokens: float, seed: int = 0) -> PoolPolicy:
    """Of two layers, with a random prior that sums to 1 and random weights."""
    rng = np.random.default_rng(seed)
    prior = [rng.dirichlet(np.ones(n)).astype(np.float32) for n in NEURONS]
    return PoolPolicy(SIZES, prior_tokens, prior, [rng.uniform(0.5, 2, n).astype(np.float32) for n in NEURONS])


def token_scores(texts: int, seed: int, pools: Pools | None = None, opened=None) -> list[np.ndarray]:
    """Shares of one token a text, f32[B, F] for each layer; nothing outside of a pool that is not open."""
    rng = np.random.default_rng(seed)
    scores = [rng.dirichlet(np.full(n, 0.3), texts).astype(np.float32) for n in NEURONS]
    if pools is not None:
        scores = [s * (m | np.asarray(opened)[:, None]) for s, m in zip(scores, pools.masks, strict=True)]
    return scores


def members(mask) -> set[int]:
    return set(np.flatnonzero(mask).tolist())


@pytest.mark.parametrize("prior_tokens", [0.0, 8.0, float("inf")])
def test_a_pool_holds_the_best_of_the_blended_score(prior_tokens):
    policy, scores = make_policy(prior_tokens), [30 * s for s in token_scores(3, seed=1)]
    pools = choose_pools(policy, scores, np.array([30, 30, 30]))
    for layer, mask in enumerate(pools.masks):
        assert mask.dtype == np.bool_
        for row in range(3):
            own = 0 if np.isinf(prior_tokens) else scores[layer][row]
            prior = policy.prior[layer] * (1 if np.isinf(prior_tokens) else prior_tokens)
            blended = (own + prior) * policy.weight[layer]
            assert members(mask[row]) == set(np.argsort(-blended)[: SIZES[layer]].tolist())


def test_a_pool_may_hold_every_neuron():
    policy = dataclasses.replace(make_policy(8.0), sizes=list(NEURONS))
    assert all(mask.all() for mask in choose_pools(policy, token_scores(2, 0), np.array([1, 1])).masks)


def test_short_prompts_lean_on_the_prior_and_long_ones_on_the_prompt():
    """The prior favors the first half of a layer, the prompt's tokens the other."""
    first, last = np.repeat([1.0, 0.0], 4).astype(np.float32) / 4, np.repeat([0.0, 1.0], 4).astype(np.float32) / 4
    policy = PoolPolicy([4], 20.0, [first], [np.ones(8, np.float32)])
    lengths = np.array([1, 19, 21, 5000])
    pools = choose_pools(policy, [lengths[:, None] * last], lengths)
    assert [members(mask) for mask in pools.masks[0]] == [{0, 1, 2, 3}] * 2 + [{4, 5, 6, 7}] * 2
    # The longest counts for what memory holds of it: what comes after it is not drowned.
    np.testing.assert_allclose(pools.score[0].sum(axis=1), [1, 19, 21, MEMORY_TOKENS])


def test_masks_are_replaced_and_never_written_to():
    """A session keeps them bound: between two choices they are the same arrays, and a choice makes new ones."""
    policy = make_policy(8.0)
    pools = choose_pools(policy, token_scores(2, 0), np.array([1, 1]))
    everything, changes = [(pools.masks, copy.deepcopy(pools.masks))], 0
    for step in range(5 * REFRESH_TOKENS):
        before = list(pools.masks)
        opened = np.array([step % 7 == 3, False])
        update_pools(policy, pools, token_scores(2, step, pools, opened), opened, np.array([True, True]))
        if pools.masks[0] is before[0]:
            assert all(mask is same for mask, same in zip(pools.masks, before, strict=True))
        else:
            changes += 1
            everything.append((pools.masks, copy.deepcopy(pools.masks)))
    assert changes == 5
    for masks, copies in everything:
        for mask, as_it_was in zip(masks, copies, strict=True):
            np.testing.assert_array_equal(mask, as_it_was)


def follow(pools: Pools, policy: PoolPolicy, opened: list[bool], row: int = 0) -> list[int]:
    """Read a token for each entry; returns the steps, from 1, at which a row's pool was chosen anew."""
    steps = []
    for step, is_open in enumerate(opened, start=1):
        before, flags = pools.since_chosen[row], np.full(len(pools.evidence), is_open)
        update_pools(policy, pools, token_scores(len(flags), step, pools, flags), flags, np.ones(len(flags), np.bool_))
        if pools.since_chosen[row] <= before:
            steps.append(step)
    return steps


@pytest.mark.parametrize(
    ("opened_at", "expected"),
    [
        # Nothing new is known of what lies outside of a pool that stays closed.
        ([], []),
        # Open early: chosen when the time has come, and not again.
        ([3], [16]),
        # Open late: chosen at once.
        ([20], [20]),
        ([3, 20, 21], [16, 32]),
        (range(1, 101), [16, 32, 48, 64, 80, 96]),
    ],
)
def test_a_pool_is_chosen_anew_only_after_it_was_open_and_not_too_often(opened_at, expected):
    assert REFRESH_TOKENS == 16
    policy = make_policy(8.0)
    pools = choose_pools(policy, token_scores(1, 999), np.array([1]))
    first = list(pools.masks)
    assert follow(pools, policy, [step in opened_at for step in range(1, 101)]) == expected
    assert (pools.masks[0] is first[0]) == (not expected)


def test_an_open_token_stands_for_those_since_the_pool_was_open_last():
    """Contributions of neurons in the pool count token by token, those of the others at once."""
    policy = dataclasses.replace(make_policy(0.0), sizes=[1, 1])
    pools = choose_pools(policy, token_scores(1, 0), np.array([1]))
    start = copy.deepcopy(pools.score)
    for step in range(1, 11):
        share = [np.full((1, n), 0.01, np.float32) for n in NEURONS]
        closed = [s * m for s, m in zip(share, pools.masks, strict=True)]
        update_pools(policy, pools, share if step == 10 else closed, np.array([step == 10]), np.array([True]))
    fade = 1 - 1 / MEMORY_TOKENS
    for mask, score, was in zip(pools.masks, pools.score, start, strict=True):
        outside = score[~mask] - was[~mask] * fade**10
        np.testing.assert_allclose(outside, 0.01 * 10, rtol=1e-5)
        inside = score[mask] - was[mask] * fade**10
        np.testing.assert_allclose(inside, 0.01 * sum(fade**k for k in range(10)), rtol=1e-4)


def test_what_was_used_long_ago_fades():
    policy = make_policy(0.0)
    pools = choose_pools(policy, [1000 * s for s in token_scores(1, 0)], np.array([1000]))
    old = copy.deepcopy(pools.score)
    for _ in range(MEMORY_TOKENS):
        update_pools(policy, pools, [0 * s for s in old], np.array([True]), np.array([True]))
    for score, was in zip(pools.score, old, strict=True):
        np.testing.assert_allclose(score, was / np.e, rtol=0.01)


def test_texts_that_have_ended_change_nothing():
    """Neither their own pools nor those of the others."""
    policy = make_policy(8.0)
    both = choose_pools(policy, token_scores(2, 0), np.array([5, 9]))
    ended = copy.deepcopy(both)
    alone = choose_pools(policy, [s[:1] for s in token_scores(2, 0)], np.array([5]))
    for step in range(40):
        opened = np.array([step % 5 == 0, True])
        scores = token_scores(2, step)
        update_pools(policy, both, scores, opened, np.array([True, False]))
        update_pools(policy, alone, [s[:1] for s in scores], opened[:1], np.array([True]))
    for field in dataclasses.fields(Pools):
        now, as_it_was, own = (getattr(pools, field.name) for pools in (both, ended, alone))
        for ours, theirs, single in zip(*map(as_list, (now, as_it_was, own)), strict=True):
            np.testing.assert_array_equal(ours[1], theirs[1], err_msg=field.name)
            np.testing.assert_array_equal(ours[0], single[0], err_msg=field.name)
    assert not np.array_equal(both.masks[1][0], ended.masks[1][0])


def as_list(value) -> list[np.ndarray]:
    return value if isinstance(value, list) else [value]


def test_a_pool_is_overdue_after_so_many_tokens():
    policy = make_policy(8.0)
    pools = choose_pools(policy, token_scores(2, 0), np.array([1, 1]))
    pools.since_opened[:] = [CLOSED_TOKENS - 2, CLOSED_TOKENS - 1]
    assert overdue(pools, 0.97).tolist() == [False, True]
    # A policy that opens no pool keeps them all closed.
    assert overdue(pools, 2.0).tolist() == [False, False]


# What follows reads real text with the demo model. Its own pools hold most neurons and lean on the prior alone where
# calibration found that best: half of the neurons, and a prior of some tokens, leave something to follow.


@pytest.fixture(scope="module")
def session(demo_artifact) -> Session:
    session = Session(demo_artifact, threads=1)
    policy = session.pool_policy
    sizes = [len(prior) // 2 for prior in policy.prior]
    session.pool_policy = dataclasses.replace(policy, sizes=sizes, prior_tokens=64.0)
    return session


def topics() -> dict[str, str]:
    """Long stretches of very different text."""
    rng = np.random.default_rng(0)
    lines = HELDOUT.read_text(encoding="utf-8").splitlines()
    table = "\n".join(", ".join(f"{x:.3f}" for x in rng.normal(0, 50, 8)) for _ in range(60))
    prose = (
        "The wind came down from the hills before dawn, and the people of the village woke to find that the river had "
        "risen. Nobody could say how long the rain had lasted, but the old miller remembered another spring when the "
        "fields lay under water until June. He told the children about it while they carried sand to the bridge, and "
        "they listened, as children do, with half an ear. "
    )
    return {"code": "\n".join(json.loads(line)["text"] for line in lines[:2]), "table": table, "prose": prose * 6}


@pytest.fixture(scope="module")
def ids(session) -> dict[str, list[int]]:
    """Tokens of each topic."""
    return {name: session.tokenizer.encode(text, add_special_tokens=False).ids for name, text in topics().items()}


def overlap(masks, others) -> float:
    """Share of the neurons of the first pools that the others hold too, mean over layers."""
    return float(np.mean([(a & b).sum() / a.sum() for a, b in zip(masks, others, strict=True)]))


def read(session, state, tokens) -> list:
    return [session.decode(state, [token])[0] for token in tokens]


@pytest.mark.parametrize(
    ("before", "after"), [("code", "prose"), ("code", "table"), ("table", "prose"), ("prose", "table")]
)
def test_no_pool_is_stale_when_the_text_turns_to_something_else(session, ids, before, after, record_property):
    """300 tokens into the new topic the pool is far nearer to that of a fresh prompt of it: another part of the text.

    Text that is easy to predict, such as rows of numbers, raises hardly any load: pools open for it all the same.
    """
    fresh = session.prefill([[0, *ids[after][350:550]]]).masks
    state = session.prefill([[0, *ids[before][:100]]])
    first = state.masks
    stats = read(session, state, ids[after][:300])
    at_first, at_last = overlap(first, fresh), overlap(state.masks, fresh)
    record_property("overlap", f"{at_first:.3f} to {at_last:.3f}")
    assert overlap(state.masks, first) < 0.92
    assert at_last - at_first > 0.25 * (1 - at_first)
    opened = [sum(s.pool) == sum(session.manifest.model.neurons) for s in stats]
    gaps = np.diff(np.flatnonzero([True, *opened, True]))
    assert gaps.max() <= CLOSED_TOKENS
    # Most of the time they are closed.
    assert np.mean(opened) < 0.15


def test_a_pool_that_never_opens_is_stale(session, ids, monkeypatch):
    """It is opening that keeps them up to date: policies without it keep the pool of the prompt."""
    monkeypatch.setattr(session, "_reanalysis_load", np.float32(2))
    state = session.prefill([[0, *ids["code"][:100]]])
    first = state.masks
    stats = read(session, state, ids["prose"][:150])
    assert all(mask is same for mask, same in zip(state.masks, first, strict=True))
    assert all(list(s.pool) == session.pool_policy.sizes for s in stats)


def same_but_for_rounding(masks, others) -> bool:
    """Whether pools are the same, but for a neuron or two that are as good."""
    return all((a != b).sum() <= 4 for a, b in zip(masks, others, strict=True))


def test_texts_of_a_batch_get_the_pools_of_each_alone(session, ids):
    """After prompts of different lengths, and after 100 tokens more, of which one text reads only half."""
    prompts = [[0, *ids["code"][:90]], [0, *ids["table"][:40]], [0, *ids["prose"][:7]]]
    ways = [ids["prose"][:100], ids["code"][:100], ids["table"][:100]]
    together = session.prefill(prompts)
    alone = [session.prefill([prompt]) for prompt in prompts]
    chosen = [[mask[row : row + 1] for mask in together.masks] for row in range(3)]
    assert all(same_but_for_rounding(ours, one.masks) for ours, one in zip(chosen, alone, strict=True))
    for step in range(100):
        alive = [True, step < 50, True]
        session.decode(together, [way[step] for way in ways], alive)
        for one, way, going_on in zip(alone, ways, alive, strict=True):
            if going_on:
                session.decode(one, [way[step]])
    for row, one in enumerate(alone):
        ours = [mask[row : row + 1] for mask in together.masks]
        assert same_but_for_rounding(ours, one.masks)
        # They are no longer those of the prompt.
        assert row == 1 or overlap(ours, chosen[row]) < 0.97


def test_a_copied_state_has_pools_of_its_own(session, ids):
    state = session.prefill([[0, *ids["code"][:100]]])
    read(session, state, ids["code"][100:110])
    other = state.copy()
    before = copy.deepcopy((state.masks, state.pools))
    read(session, other, ids["table"][:150])
    assert overlap(other.masks, before[0]) < 0.95
    for field in dataclasses.fields(Pools):
        for ours, as_it_was in zip(*(as_list(getattr(p, field.name)) for p in (state.pools, before[1])), strict=True):
            np.testing.assert_array_equal(ours, as_it_was, err_msg=field.name)
    # And the one that was copied goes on as if it had never been.
    stats = read(session, state, ids["prose"][:80])
    alone = session.prefill([[0, *ids["code"][:100]]])
    read(session, alone, ids["code"][100:110])
    assert stats == read(session, alone, ids["prose"][:80])
    assert all(np.array_equal(a, b) for a, b in zip(state.masks, alone.masks, strict=True))


def test_no_neuron_outside_of_a_closed_pool_is_computed(session, ids):
    """Pools reach the graph: with a neuron a layer, a token that does not open them computes that one at most."""
    narrow = Session(session.folder / "model.onnx", threads=1)
    narrow.pool_policy = dataclasses.replace(session.pool_policy, sizes=[1] * len(session.pool_policy.sizes))
    stats = read(narrow, narrow.prefill([[0, *ids["code"][:50]]]), ids["code"][50:90])
    closed = [s for s in stats if set(s.pool) == {1}]
    assert len(closed) > 20
    assert all(max(s.active) <= 1 for s in closed)
    assert all(sum(s.active) > 100 for s in stats if s not in closed)
