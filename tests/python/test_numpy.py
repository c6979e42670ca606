"""The package with NumPy's arrays: beside plain attention, and beside the device reference."""

import adamas
import numpy as np
import pytest

HEADS, KV_HEADS, DIM = 8, 2, 64


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def attention(q, k, v, lengths, scale=None, causal=True):
    """softmax(q k) v in double precision: q [batch, rows, heads, dim], k and v [batch, kv_heads, tokens, dim]."""
    out = np.zeros(q.shape)
    rows = q.shape[1]
    for b, r, h in np.ndindex(*q.shape[:3]):
        end = lengths[b] - rows + r + 1 if causal else lengths[b]
        keys, values = (x[b, h * KV_HEADS // HEADS, :end].astype(float) for x in (k, v))
        scores = keys @ q[b, r, h].astype(float) * (scale or 1 / np.sqrt(DIM))
        weights = np.exp(scores - scores.max())
        out[b, r, h] = weights @ values / weights.sum()
    return out


def made(tokens, sequences=1, **settings):
    config = adamas.Config(**{"min_context": 0, **settings})
    return (
        adamas.Cache(KV_HEADS, DIM, tokens, sequences, config=config),
        adamas.Plan(HEADS, KV_HEADS, DIM, tokens, config=config, threads=2),
    )


def test_full_attention_is_attention():
    k, v, q = random(2, KV_HEADS, 500, DIM), random(2, KV_HEADS, 500, DIM, seed=1), random(2, 3, HEADS, DIM, seed=2)
    cache, plan = made(500, 2, policy="full")
    result = plan.step(cache, q, k, v, lengths=[400, 77])
    np.testing.assert_allclose(result.out, attention(q, k, v, [400, 77]), atol=1e-5)
    assert result.stats["rows_dense"] == 6


def test_the_budget_that_covers_all_is_attention():
    k, v, q = random(1, KV_HEADS, 500, DIM), random(1, KV_HEADS, 500, DIM, seed=1), random(1, 1, HEADS, DIM, seed=2)
    cache, plan = made(500, budget=500)
    cache.append(0, 0, 500, k, v)
    np.testing.assert_allclose(plan.step(cache, q, k, v).out, attention(q, k, v, [500]), atol=1e-5)


def test_a_list_and_a_rest_are_close_to_attention_and_to_the_reference():
    tokens = 4096
    k, v, q = random(1, KV_HEADS, tokens, DIM), random(1, KV_HEADS, tokens, DIM, seed=1), 2 * random(1, 1, HEADS, DIM, seed=2)
    cache, plan = made(tokens)
    cache.append(0, 0, tokens, k, v)
    result = plan.step(cache, q, k, v)
    assert result.stats["rows_sparse"] == 1
    assert result.stats["tokens_selected"] < result.stats["tokens_visible"]
    exact = attention(q, k, v, [tokens])
    assert np.linalg.norm(result.out - exact) < 0.1 * np.linalg.norm(exact)
    slow = adamas.Cache(KV_HEADS, DIM, tokens, device="reference"), adamas.Plan(HEADS, KV_HEADS, DIM, tokens, device="reference")
    slow[0].append(0, 0, tokens, k, v)
    np.testing.assert_allclose(result.out, slow[1].step(slow[0], q, k, v).out, atol=1e-2)


@pytest.mark.parametrize("policy", ["adamas", "quest", "oracle", "streaming"])
def test_policies_select_so_many_tokens(policy):
    k, v, q = random(1, KV_HEADS, 2048, DIM), random(1, KV_HEADS, 2048, DIM, seed=1), random(1, 1, HEADS, DIM, seed=2)
    cache, plan = made(2048, policy=policy, budget=128)
    cache.append(0, 0, 2048, k, v)
    plan.step(cache, q, k, v)
    tokens = plan.selection(0)
    assert 128 - 16 < len(tokens) <= 128 and (np.diff(tokens) > 0).all()


def test_layouts_and_pages_are_the_same_rows():
    tokens, page = 1000, 64
    k, v, q = random(1, KV_HEADS, tokens, DIM), random(1, KV_HEADS, tokens, DIM, seed=1), random(1, 1, HEADS, DIM, seed=2)
    cache, plan = made(tokens, budget=100)
    cache.append(0, 0, tokens, k, v)
    expected = plan.step(cache, q, k, v).out

    nhd = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (k, v)]
    cache.clear()
    cache.append(0, 0, tokens, *nhd, layout="NHD")
    np.testing.assert_array_equal(plan.step(cache, q, *nhd, layout="NHD").out, expected)

    table = np.random.default_rng(3).permutation(16).astype(np.int32)[None]
    paged = []
    for x in (k, v):
        padded = np.zeros((KV_HEADS, 16 * page, DIM), np.float32)
        padded[:, :tokens] = x[0]
        of = np.empty((16, KV_HEADS, page, DIM), np.float32)
        of[table[0]] = padded.reshape(KV_HEADS, 16, page, DIM).transpose(1, 0, 2, 3)
        paged.append(of)
    cache.clear()
    pages = adamas.Pages(table, page)
    cache.append(0, 0, tokens, *paged, pages=pages)
    np.testing.assert_array_equal(plan.step(cache, q, *paged, pages=pages, lengths=[tokens]).out, expected)


def test_the_newest_rows_of_several_sequences():
    k, v, q = random(3, KV_HEADS, 700, DIM), random(3, KV_HEADS, 700, DIM, seed=1), random(2, 1, HEADS, DIM, seed=2)
    cache, plan = made(700, 3, budget=64, min_context=0)
    cache.append_rows(k, v, [600, 500], 600, [2, 0])
    for length in range(601, 621):
        cache.append_rows(k, v, [length, length - 100], sequences=[2, 0])
    found = plan.step(cache, q, k, v, lengths=[620, 520], sequences=[2, 0], wanted=["lse"])
    assert found.stats["rows_sparse"] == 2 and found.stats["blocks_encoded"] == 0 and found.mass is None
    for b, (sequence, length) in enumerate([(2, 620), (0, 520)]):
        other, _ = made(700, 3, budget=64, min_context=0)
        other.append(sequence, 0, length, k, v)
        alone = plan.step(other, q[b : b + 1], k, v, lengths=[length], sequences=[sequence])
        np.testing.assert_array_equal(found.out[b], alone.out[0])
    with pytest.raises(ValueError, match="wanted"):
        plan.step(cache, q, k, v, wanted=["loss"])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn"])
def test_small_floats(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(name) if name == "float16" else np.dtype(getattr(ml_dtypes, name))
    k, v, q = random(1, KV_HEADS, 300, DIM), random(1, KV_HEADS, 300, DIM, seed=1), random(1, 1, HEADS, DIM, seed=2)
    small = [(x / 2).astype(dtype) for x in (k, v)]
    cache, plan = made(300, policy="full")
    result = plan.step(cache, q, *small, lengths=[300], k_scale=2, v_scale=2)
    wide = [x.astype(np.float32) * 2 for x in small]
    np.testing.assert_allclose(result.out, attention(q, *wide, [300]), atol=1e-5)


def test_sequences_are_cut_and_shared():
    k, v, q = random(2, KV_HEADS, 600, DIM), random(2, KV_HEADS, 600, DIM, seed=1), random(1, 1, HEADS, DIM, seed=2)
    k[1], v[1] = k[0], v[0]
    cache, plan = made(600, 2, budget=64)
    cache.append(0, 0, 600, k, v)
    cache.truncate(0, 500)
    cache.share(0, 1, 500)
    outs = [plan.step(cache, q, k, v, sequences=[s], lengths=[500]).out for s in (0, 1)]
    np.testing.assert_array_equal(*outs)


def test_what_is_wrong_is_said():
    cache, plan = made(256)
    k, q = random(1, KV_HEADS, 256, DIM), random(1, 1, HEADS, DIM)
    with pytest.raises(ValueError, match="q: shape"):
        plan.step(cache, q[..., :32], k, k)
    with pytest.raises(TypeError, match="elements are int64"):
        cache.append(0, 0, 1, k.astype(np.int64))
    with pytest.raises(ValueError, match="in line"):
        cache.append(0, 0, 1, np.asfortranarray(k))
    with pytest.raises(adamas.Error, match="sequence: 7") as refused:
        cache.append(7, 0, 1, k)
    assert refused.value.status
    with pytest.raises(adamas.Error, match="head_dim"):
        adamas.Cache(1, 63, 100)
    with pytest.raises(ValueError, match="device"):
        adamas.Cache(1, 64, 100, device="tpu")
    with pytest.raises(adamas.Error, match="budget"):
        adamas.Config(budget="much")


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ADAMAS_BUDGET", "77")
    assert adamas.Config().budget == "auto"
    config = adamas.Config.from_environment(recent=3)
    assert (config.budget, config.recent) == ("77", "3")
    assert repr(config) == "Config(budget='77', recent='3')"
    assert adamas.Config(recent=1, preset="paper").recent == "1"
