"""A context over several ranks: beside one process, and beside plain attention."""

import json
import os
import signal
import subprocess
import sys
import time

import adamas
import numpy as np
import pytest
import torch
from adamas.distributed import Shard, split
from ranks import on_ranks

HEADS, KV_HEADS, DIM = 8, 2, 64
TOKENS = 3000
CUTS = {  # where a rank's tokens begin
    2: [0, 1024],
    3: [0, 64, 2496],
    8: [0, 0, 640, 704, 704, 1472, 1984, 2944],  # two have none
}


def context(kind="normal", tokens=TOKENS):
    """K, V [1, kv_heads, tokens, dim] and a query [heads, dim]."""
    random = np.random.default_rng(7)
    k, v = random.standard_normal((2, 1, KV_HEADS, tokens, DIM), np.float32)
    if kind == "ties":  # tokens that are the same, and score the same
        k = k[:, :, np.arange(tokens) % 37]
    else:
        k += 2 * random.standard_normal((1, KV_HEADS, -(-tokens // 64), 1, DIM), np.float32).repeat(64, 3).reshape(
            1, KV_HEADS, -1, DIM
        )[:, :, :tokens]
    return np.ascontiguousarray(k), v, 2 * random.standard_normal((HEADS, DIM), np.float32)


def exact(q, k, v):
    """softmax(q k) v in double precision, [heads, dim]; and its log-sum-exp."""
    keys, values = (x[0].repeat(HEADS // KV_HEADS, 0).astype(float) for x in (k, v))
    scores = np.einsum("hd,htd->ht", q.astype(float), keys) / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    lse = np.log(weights.sum(1)) + scores.max(1)
    return np.einsum("ht,htd->hd", weights, values) / weights.sum(1, keepdims=True), lse


def of_one_process(k, v, q, **settings):
    config = adamas.Config(min_context=0, **settings)
    cache = adamas.Cache(KV_HEADS, DIM, k.shape[2], config=config)
    plan = adamas.Plan(HEADS, KV_HEADS, DIM, k.shape[2], config=config, threads=1)
    cache.append(0, 0, k.shape[2], k, v)
    return cache, plan, plan.step(cache, q[None, None], k, v)


def part_of(rank, starts, k, v, **settings):
    """A rank's shard, and its rows."""
    first, end = starts[rank], ([*starts, k.shape[2]])[rank + 1]
    own = [np.ascontiguousarray(x[:, :, first:end]) for x in (k, v)]
    shard = Shard(HEADS, KV_HEADS, DIM, first, end - first, adamas.Config(min_context=0, **settings), threads=1)
    shard.append(end - first, *own)
    return shard, own


def equals_one_process(rank, ranks):
    for kind in ("normal", "ties"):
        k, v, q = context(kind)
        for settings in ({"budget": 128}, {"budget": 100, "sinks": 70, "recent": 20}, {"budget": 600, "estimator": "manhattan"}):
            cache, plan, whole = of_one_process(k, v, q, **settings)
            shard, own = part_of(rank, CUTS[ranks], k, v, **settings)
            blocks = -(-len(shard) // 64)
            for head in range(KV_HEADS):
                for block in range(blocks):
                    np.testing.assert_array_equal(
                        shard.cache.block_bytes(0, head, block), cache.block_bytes(0, head, shard.origin // 64 + block)
                    )
            scores, all_scores = shard.cache.scores(q, merge=shard.group.merge), cache.scores(q)
            np.testing.assert_array_equal(scores.scores, all_scores.scores[:, shard.origin : shard.origin + len(shard)])
            assert scores.tokens == TOKENS
            result = shard.step(q, *(torch.from_numpy(x).clone() for x in own))
            for head in range(HEADS):
                selected = plan.selection(head)
                here = (selected >= shard.origin) & (selected < shard.origin + len(shard))
                np.testing.assert_array_equal(result.tokens[head], selected[here])
            np.testing.assert_allclose(result.out, whole.out[0, 0], atol=1e-5)
            np.testing.assert_allclose(result.lse, whole.lse[0, 0], atol=1e-5)
            assert all(torch.equal(out, result.out) for out in shard.group.gather(result.out))


@pytest.mark.parametrize("ranks", CUTS)
def test_codes_scores_and_selections_are_those_of_one_process(ranks):
    assert on_ranks(ranks, equals_one_process, ranks) == [0] * ranks


def lists_are_as_close(rank, ranks):
    k, v, q = context()
    truth, lse = exact(q, k, v)
    whole = of_one_process(k, v, q)[2]
    shard, own = part_of(rank, CUTS[ranks], k, v)
    result = shard.step(torch.from_numpy(q), *(torch.from_numpy(x).clone() for x in own))
    assert result.tokens is None
    error, of_one = (np.linalg.norm(x - truth) for x in (result.out.numpy(), whole.out[0, 0]))
    assert error < max(1.2 * of_one, 1e-5 * np.linalg.norm(truth)), (error, of_one)
    np.testing.assert_allclose(result.lse, lse, atol=0.05)
    shard, own = part_of(rank, CUTS[ranks], k, v, policy="full")
    result = shard.step(q, *own)
    np.testing.assert_allclose(result.out, truth, atol=1e-5)
    np.testing.assert_allclose(result.lse, lse, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 8])
def test_lists_and_rests_of_ranks_are_as_close_to_attention_as_those_of_one(ranks):
    assert on_ranks(ranks, lists_are_as_close, ranks) == [0] * ranks


def grows(rank):
    k, v, q = context(tokens=1300)
    config = adamas.Config(min_context=0, budget=128)
    cache = adamas.Cache(KV_HEADS, DIM, 1300, config=config)
    plan = adamas.Plan(HEADS, KV_HEADS, DIM, 1300, config=config, threads=1)
    shard = Shard(HEADS, KV_HEADS, DIM, 640 * rank, 640, config, threads=1)
    own = [np.ascontiguousarray(x[:, :, 640 * rank : 640 * rank + 640]) for x in (k, v)]
    if rank == 0:
        shard.append(640, *own)
    for length in (100, 641, *range(700, 725), 1024, 1025):
        cache.truncate(0, 0)
        cache.append(0, 0, length, k, v)
        if rank == 1 and length > 640:
            shard.append(length - 640 - len(shard), *own)
        if length < 640:
            continue
        plan.step(cache, q[None, None], k, v, lengths=[length])
        result = shard.step(q, *own)
        for head in range(HEADS):
            selected = plan.selection(head)
            np.testing.assert_array_equal(result.tokens[head], selected[selected >= 640] if rank else selected[selected < 640])


def test_the_last_rank_grows():
    assert on_ranks(2, grows) == [0, 0]


def reads_all(rank):
    k, v, q = context(tokens=600)
    for settings in ({"budget": 600}, {"budget": 64, "max_noise": 1e-3}, {"budget": 64, "dense_layers": 1}):
        shard, own = part_of(rank, [0, 320], k, v, **settings)
        np.testing.assert_allclose(shard.step(q, *own).out, exact(q, k, v)[0], atol=1e-5)


def test_short_contexts_noisy_heads_and_dense_layers_are_read_whole():
    assert on_ranks(2, reads_all) == [0, 0]


def costs(rank, ranks):
    sent = []
    for tokens in (1500, 3000):
        k, v, q = context(tokens=tokens)
        shard, own = part_of(rank, [first for first, _ in split(tokens, ranks)], k, v, budget=64)
        shard.group.messages.clear(), shard.group.bytes.clear()
        shard.step(q, *own)
        assert shard.group.messages == {"max": 3, "sum": 3, "gather": 1}, shard.group.messages
        sent.append(shard.group.bytes)
    maxima = 8 * (1 + 2 * KV_HEADS + 2 * HEADS) + 8 * 3 * HEADS + 4 * HEADS
    for of in sent:
        assert of["max"] == maxima and of["gather"] == 8 * HEADS
        assert of["sum"] < 8 * (1 + 512 * KV_HEADS) + 8 * 2000 * HEADS + 4 * HEADS * (DIM + 1)


def test_messages_do_not_grow_with_tokens_or_ranks():
    for ranks in (2, 3):
        assert on_ranks(ranks, costs, ranks) == [0] * ranks


def test_the_bench_reports_time_and_bytes():
    command = "-m adamas.bench distributed --tokens 4096 --ranks 2 --budget 64 --steps 3 --kv-heads 2 --q-heads 8 --head-dim 64 --json"
    printed = subprocess.run([sys.executable, *command.split()], check=True, capture_output=True, text=True, timeout=120).stdout
    (row,) = json.loads(printed)
    assert (row["tokens"], row["budget"], row["ranks"], row["messages"]) == (4096, "64", 2, 7)
    assert 0 < row["least_seconds"] <= row["seconds"] < 10 and 0 < row["least_messages_alone"] <= row["messages_alone"]
    assert row["bytes"]["max"] == 8 * (1 + 4 + 16) + 24 * 8 + 4 * 8 and row["bytes"]["gather"] == 64


def refuses(rank):
    config = adamas.Config(min_context=0, budget=64)
    for origins, sentence in (([0, 100], "multiple of 64"), ([0, 64], "up to 128"), ([64, 0], "up to 192")):
        with pytest.raises(ValueError, match=sentence):
            Shard(HEADS, KV_HEADS, DIM, origins[rank], 128, config)
    with pytest.raises(ValueError, match="other settings"):
        Shard(HEADS, KV_HEADS, DIM, 128 * rank, 128, adamas.Config(budget=64 + rank))
    for settings, sentence in (({"policy": "quest"}, "'adamas' and 'full'"), ({"min_mass": 0.5}, "min_mass")):
        with pytest.raises(ValueError, match=sentence):
            Shard(HEADS, KV_HEADS, DIM, 128 * rank, 128, adamas.Config(**settings))
    k, v, q = context(tokens=200)
    shard = Shard(HEADS, KV_HEADS, DIM, 128 * rank, 128, config, threads=1)
    shard.append(70, k, v)
    with pytest.raises(adamas.Error, match="140 tokens and end at 198"):
        shard.step(q, k, v)


def test_what_is_wrong_is_said_by_every_rank():
    assert on_ranks(2, refuses) == [0, 0]


def meets_a_silent_rank(rank, how):
    k, v, q = context()
    shard, own = part_of(rank, CUTS[3], k, v, budget=128)
    shard.group.timeout /= 30  # 2 seconds
    shard.step(q, *own)
    if rank == 1:
        os.kill(os.getpid(), how)
    started = time.monotonic()
    with pytest.raises(RuntimeError) as failed:
        for _ in range(1000):
            shard.step(q, *own)
    print(f"rank {rank}: {failed.value}")
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_a_rank_that_is_dead_or_silent_is_an_error_and_no_hang(how):
    assert on_ranks(3, meets_a_silent_rank, how, limit=12) == [0, -9, 0]
