"""Single stages: beside NumPy's loops, and beside a step."""

import adamas
import numpy as np
import pytest

HEADS, KV_HEADS, DIM, TOKENS = 6, 2, 64, 1000


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def made(**settings):
    k, v, q = random(1, KV_HEADS, TOKENS, DIM), random(1, KV_HEADS, TOKENS, DIM, seed=1), 2 * random(HEADS, DIM, seed=2)
    config = adamas.Config(min_context=0, **settings)
    cache = adamas.Cache(KV_HEADS, DIM, TOKENS, config=config)
    cache.append(0, 0, TOKENS, k, v)
    return k, v, q, cache, adamas.Plan(HEADS, KV_HEADS, DIM, TOKENS, config=config)


def hadamard(n):
    return np.ones((1, 1)) if n == 1 else np.kron([[1, 1], [1, -1]], hadamard(n // 2))


def codes_of(block):
    """Codes [64, dim], centre [dim] and deviation of a block, as docs/codes.md lays them out."""
    planes = np.frombuffer(block[: 4 * 4 * 64].tobytes(), np.uint32).reshape(2, 2, 64)
    bits = (planes[..., None] >> np.arange(32, dtype=np.uint32) & 1).transpose(0, 2, 1, 3).reshape(2, 64, DIM)
    centre = np.frombuffer(block[1024 : 1024 + 2 * DIM].tobytes(), np.int16)
    centre_scale, sigma = np.frombuffer(block[1024 + 2 * DIM + 256 :][:8].tobytes(), np.float32)
    return 2 * bits[0].astype(int) + bits[1], centre * centre_scale.astype(float), float(sigma)


def test_scores_are_estimates_from_codes():
    k, v, q, cache, _ = made(budget=128)
    found = cache.scores(q)
    assert found.scores.shape == (HEADS, TOKENS) and found.tokens == TOKENS
    rotated = q.astype(float) @ hadamard(DIM) / np.sqrt(DIM)
    estimates = found.estimates()
    for head in range(HEADS):
        for block in range(3):
            codes, centre, sigma = codes_of(cache.block_bytes(0, head // 3, block))
            read_back = centre + (2 * codes - 3) * 0.498 * sigma
            expected = read_back @ rotated[head] / np.sqrt(DIM)
            own = estimates[head, 64 * block : 64 * block + 64]
            known = ~np.isnan(own)
            assert known.sum() == (60 if block == 0 else 64)  # the first four are sinks
            rms = np.sqrt((rotated[head] ** 2).mean()) * sigma * 0.5
            assert np.abs(own - expected)[known].max() < 0.5 * rms  # the query has 43 levels, the score a unit
    truth = np.einsum("hd,htd->ht", q, k[0].repeat(3, 0)) / np.sqrt(DIM)
    np.testing.assert_allclose(np.nanmean((estimates - truth) ** 2, axis=1), found.noise, rtol=0.25)


def test_stages_one_after_the_other_are_a_step():
    k, v, q, cache, plan = made(budget=100, recent=7)
    tokens = adamas.select(cache.scores(q).scores, 100)
    step = plan.step(cache, q[None, None], k, v)
    for head in range(HEADS):
        np.testing.assert_array_equal(tokens[head], plan.selection(head))
    out, lse = adamas.attend(q, k, v, tokens)
    np.testing.assert_allclose(out, step.out[0, 0], atol=1e-5)
    np.testing.assert_allclose(lse, step.lse[0, 0], atol=1e-5)


@pytest.mark.parametrize("budget", [1, 30, 500])
def test_select_is_sort_and_cut(budget):
    scores = np.random.default_rng(3).integers(-20, 20, (3, 333)).astype(np.int16)
    scores[0, ::3] = -32768
    for row, found in zip(scores, adamas.select(scores, budget)):
        order = sorted((t for t in range(len(row)) if row[t] != -32768), key=lambda t: (row[t], t), reverse=True)
        np.testing.assert_array_equal(found, sorted(order[:budget]))


def test_attend_is_attention_over_what_is_given():
    k, v = random(2, KV_HEADS, 300, DIM), random(2, KV_HEADS, 300, DIM, seed=1)
    q = random(HEADS, DIM, seed=2)
    tokens = [np.random.default_rng(h).permutation(200)[: h * 20] for h in range(HEADS)]
    for given in (tokens, None):
        out, lse = adamas.attend(q, k, v, given, length=200, sequence=1, scale=0.2, softcap=3.0)
        for head in range(HEADS):
            of = np.arange(200) if given is None else given[head]
            keys, values = (x[1, head // 3, of].astype(float) for x in (k, v))
            scores = 3 * np.tanh(keys @ q[head].astype(float) * 0.2 / 3)
            weights = np.exp(scores)
            np.testing.assert_allclose(out[head], weights @ values / weights.sum() if len(of) else 0, atol=1e-5)
            np.testing.assert_allclose(lse[head], np.log(weights.sum()) if len(of) else -np.inf, atol=1e-5)


def test_tensors_and_layouts():
    torch = pytest.importorskip("torch")
    k, v, q, cache, _ = made(budget=100)
    out, lse = adamas.attend(q, k, v)
    nhd = [torch.from_numpy(x).transpose(1, 2) for x in (k, v)]
    same, same_lse = adamas.attend(torch.from_numpy(q), *nhd, layout="NHD")
    assert isinstance(same, torch.Tensor)
    np.testing.assert_array_equal(same, out)
    np.testing.assert_array_equal(same_lse, lse)
    np.testing.assert_array_equal(cache.scores(torch.from_numpy(q)).scores, cache.scores(q).scores)
    half = adamas.attend(torch.from_numpy(q).bfloat16(), *(torch.from_numpy(x).bfloat16() for x in (k, v)))[0]
    np.testing.assert_allclose(half, out, atol=0.05)


def test_what_is_wrong_is_said():
    k, v, q, cache, _ = made(budget=100)
    with pytest.raises(adamas.Error, match="not a multiple of kv_heads"):
        cache.scores(q[:3])
    with pytest.raises(ValueError, match="q: shape"):
        cache.scores(q[:, :32])
    with pytest.raises(TypeError, match="int16"):
        adamas.select(np.zeros((2, 10)), 3)
    with pytest.raises(adamas.Error, match="budget"):
        adamas.select(np.zeros((2, 10), np.int16), 0)
    with pytest.raises(adamas.Error, match="indices of head 1"):
        adamas.attend(q, k, v, [[0], [TOKENS], [0], [0], [0], [0]])
    with pytest.raises(ValueError, match="one for each of 6 heads"):
        adamas.attend(q, k, v, [[0]])
    with pytest.raises(ValueError, match="room for 1000"):
        adamas.attend(q, k, v, length=1001)
    with pytest.raises(adamas.Error, match="multiple of 64"):
        adamas.Cache(KV_HEADS, DIM, 100, origin=7)
    quest = adamas.Cache(KV_HEADS, DIM, 100, config=adamas.Config(policy="quest"))
    with pytest.raises(adamas.Error, match="only the policy adamas"):
        quest.scores(q)
    cache.append(0, 0, 10, k)
    lazy = adamas.Cache(KV_HEADS, DIM, TOKENS, config=adamas.Config(budget=100))
    assert lazy.scores(q).scores.shape == (HEADS, 0)


def test_what_a_merge_raises_is_raised():
    _, _, q, cache, _ = made(budget=100)

    def merge(op, values):
        raise KeyError(op)

    with pytest.raises(KeyError, match="max"):
        cache.scores(q, merge=merge)
