"""The operators of PyTorch on a CPU: beside NumPy's path, PyTorch's attention, and themselves when they are traced."""

import pytest

torch = pytest.importorskip("torch")
import adamas  # noqa: E402
import adamas.torch  # noqa: E402
from adamas.torch import BatchDecode, append, attend  # noqa: E402

HEADS, KV_HEADS, DIM = 8, 2, 64
SMALL = adamas.Config(budget=64, min_context=0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(tokens, sequences=1, **settings):
    config = adamas.Config(**{"min_context": 0, **settings})
    return (
        adamas.torch.Cache(KV_HEADS, DIM, tokens, sequences, config=config),
        adamas.torch.Plan(HEADS, KV_HEADS, DIM, tokens, config=config, threads=2),
    )


def rows(sequences, tokens):
    return random(sequences, KV_HEADS, tokens, DIM), random(sequences, KV_HEADS, tokens, DIM, seed=1)


def sdpa(q, k, v, lengths, **options):
    """PyTorch's own: q [batch, rows, heads, dim], of the last rows of each sequence."""
    outs = []
    for b, length in enumerate(lengths.tolist()):
        seen = torch.ones(q.shape[1], length, dtype=torch.bool).tril(length - q.shape[1])
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[b].transpose(0, 1), k[b, :, :length], v[b, :, :length], seen, enable_gqa=True, **options
            ).transpose(0, 1)
        )
    return torch.stack(outs)


@pytest.mark.parametrize("count", [1, 3])
def test_the_budget_that_covers_all_is_pytorchs_attention(count):
    k, v = rows(2, 500)
    q, lengths = random(2, count, HEADS, DIM, seed=2), torch.tensor([500, 333])
    cache, plan = made(500, 2, budget=500)
    append(cache, k, v, lengths, rows=500)
    out, lse = attend(plan, cache, q, k, v, lengths, scale=0.2)
    torch.testing.assert_close(out, sdpa(q, k, v, lengths, scale=0.2), atol=1e-5, rtol=1e-5)
    scores = q[0, -1, 0] @ k[0, 0].T * 0.2
    torch.testing.assert_close(lse[0, -1, 0], scores.logsumexp(0), atol=1e-5, rtol=1e-5)


def test_sparse_steps_are_those_of_numpys_path():
    k, v = rows(2, 3000)
    q, lengths = 2 * random(2, 1, HEADS, DIM, seed=2), torch.tensor([3000, 1234])
    cache, plan = made(3000, 2)
    append(cache, k, v, lengths, rows=3000)
    out, lse = attend(plan, cache, q, k, v, lengths)
    assert plan.counts["rows"] == plan.counts["rows_sparse"] == 2
    config = adamas.Config(min_context=0)
    other = adamas.Cache(KV_HEADS, DIM, 3000, 2, config), adamas.Plan(HEADS, KV_HEADS, DIM, 3000, config, threads=2)
    for b, length in enumerate(lengths.tolist()):
        other[0].append(b, 0, length, k.numpy(), v.numpy())
    result = other[1].step(other[0], q.numpy(), k.numpy(), v.numpy(), lengths.tolist())
    assert torch.equal(out, torch.from_numpy(result.out)) and torch.equal(lse, torch.from_numpy(result.lse))


def test_other_sequences_than_the_first_and_other_layouts():
    k, v = rows(4, 700)
    q, sequences, lengths = random(2, 1, HEADS, DIM, seed=2), torch.tensor([3, 1]), torch.tensor([700, 650])
    cache, plan = made(700, 4, budget=64)
    append(cache, k, v, lengths, 700, sequences)
    out, _ = attend(plan, cache, q, k, v, lengths, sequences)
    nhd = [x.transpose(1, 2).contiguous() for x in (k, v)]
    append(cache, *nhd, lengths, 700, sequences, layout="NHD")
    assert torch.equal(attend(plan, cache, q, *nhd, lengths, sequences, layout="NHD")[0], out)
    alone, _ = made(700, 1, budget=64)
    append(alone, k[3:], v[3:], lengths[:1], 700)
    assert torch.equal(attend(plan, alone, q[:1], k[3:], v[3:], lengths[:1])[0], out[:1])


def test_opcheck():
    k, v = rows(2, 700)
    q, lengths = random(2, 1, HEADS, DIM, seed=2), torch.tensor([700, 300])
    cache, plan = made(700, 2, budget=64)
    table = torch.arange(22, dtype=torch.int32).reshape(2, 11)
    paged = [torch.zeros(22, KV_HEADS, 64, DIM) for _ in range(2)]
    options = (True, None, 0.0, None, random(HEADS), random(HEADS, seed=4), 1.0, 1.0)
    for keys, values, *where in ((k, v, None, None), (*paged, torch.tensor([1, 0]), table)):
        torch.library.opcheck(
            torch.ops.adamas.append.default, (cache.handle, cache.state, keys, values, lengths, 700, *where, "HND")
        )
        torch.library.opcheck(
            torch.ops.adamas.attend.default,
            (plan.handle, cache.handle, cache.state, q, keys, values, lengths, *where, "HND", *options),
        )


def test_a_decode_step_is_traced_whole(monkeypatch):
    """Rows are written, told of and attended to; the graph writes into the same K and V, and keeps the order."""
    addresses = set()
    tell = adamas.torch.Cache.append_rows
    monkeypatch.setattr(
        adamas.torch.Cache, "append_rows", lambda self, k, *of, **more: (addresses.add(k.data_ptr()), tell(self, k, *of, **more))[1]
    )

    def decode(step, count=4):
        k, v = rows(2, 700)
        cache, plan = made(700, 2, budget=64)
        lengths, outs = torch.tensor([600, 300]), []
        append(cache, k, v, lengths, rows=600)
        for i in range(count):
            new = [random(2, KV_HEADS, DIM, seed=10 * i + j) for j in range(2)]
            outs += step(cache, plan, k, v, lengths, random(2, 2, HEADS, DIM, seed=100 + i), *new)
        return torch.stack(outs), {k.data_ptr()}

    def step(cache, plan, k, v, lengths, q, new_k, new_v):
        outs = []
        for row in range(2):  # two tokens in one graph: each sees its own row, and the second the first
            k[torch.arange(2), :, lengths] = new_k * (row + 1)
            v[torch.arange(2), :, lengths] = new_v * (row + 1)
            lengths.add_(1)
            append(cache, k, v, lengths)
            out, lse = attend(plan, cache, q[:, row : row + 1], k, v, lengths)
            outs.append(out * lse[..., None])
        return outs

    expected, _ = decode(step)
    addresses.clear()
    torch._dynamo.reset()
    traced, address = decode(torch.compile(step, fullgraph=True))
    torch.testing.assert_close(traced, expected, atol=1e-6, rtol=1e-6)
    assert addresses == address, "K was copied"


def in_pages(k, v, page, layout, seed=3):
    """K and V in pages in any order: (pages of both, table), of equally long sequences."""
    sequences, _, tokens, _ = k.shape
    each = -(-tokens // page)
    table = torch.randperm(sequences * each + 3, generator=torch.Generator().manual_seed(seed))[: sequences * each].reshape(sequences, each)
    paged = []
    for x in (k, v):
        x = torch.nn.functional.pad(x, (0, 0, 0, each * page - tokens)).reshape(sequences, KV_HEADS, each, page, DIM)
        of = torch.full((sequences * each + 3, KV_HEADS, page, DIM), torch.nan)
        of[table] = x.transpose(1, 2)
        paged.append(of if layout == "HND" else of.transpose(1, 2).contiguous())
    return paged, table.to(torch.int32)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page", [16, 64, 128])
def test_compressed_page_tables(page, layout):
    k, v = rows(3, 1000)
    q, lengths = random(3, HEADS, DIM, seed=2), torch.tensor([1000, 517, 640])
    cache, plan = made(1000, 3, budget=64)
    append(cache, k, v, lengths, rows=1000)
    expected, lse = attend(plan, cache, q[:, None], k, v, lengths)

    paged, table = in_pages(k, v, page, layout)
    decode = BatchDecode(
        HEADS, KV_HEADS, DIM, len(paged[0]), page, max_batch=3, max_tokens=1024, layers=2, layout=layout,
        config=SMALL, device="cpu",
    )  # fmt: skip
    counts = -(-lengths // page)
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    indices = torch.cat([table[b, :n] for b, n in enumerate(counts)])
    decode.plan(indptr, indices, (lengths - 1) % page + 1)
    for kv, layer in ((tuple(paged), 0), (torch.stack(paged, 1), 1)):
        decode.append(kv, layer, rows=1000)
        out = decode.run(q, kv, layer, return_lse=True)
        assert torch.equal(out[0], expected[:, 0]) and torch.equal(out[1], lse[:, 0])
    traced = torch.compile(lambda q, kv: decode.run(q, kv, 1), fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(q, tuple(paged)), expected[:, 0])
    decode.plan_table(table[:2], lengths[:2])
    assert torch.equal(decode.run(q[:2].half(), tuple(paged)), attend(plan, cache, q[:2, None].half(), k, v, lengths[:2])[0][:, 0].half())
    # Where codes go by page, a batch row is whatever its table says; else it says which sequence it is.
    decode.plan_table(table[2:], lengths[2:], torch.tensor([2]))
    assert torch.equal(decode.run(q[2:], tuple(paged)), expected[2:, 0])


def test_pages_that_sequences_share_have_their_codes_once():
    k, v = rows(1, 640)
    paged, table = in_pages(k, v, 64, "NHD")
    decode = BatchDecode(HEADS, KV_HEADS, DIM, len(paged[0]), 64, 2, 1024, config=SMALL, device="cpu")
    decode.plan_table(table, torch.tensor([640]))
    decode.append(tuple(paged), rows=640)
    decode.plan_table(table.expand(2, -1), torch.tensor([640, 640]))
    q = random(1, HEADS, DIM, seed=2).expand(2, -1, -1)
    out = decode.run(q, tuple(paged))
    assert decode._plan.counts["rows_sparse"] == 2 and decode._plan.counts["blocks_encoded"] == 0
    assert torch.equal(out[0], out[1])


def test_what_is_wrong_is_said():
    k, v = rows(1, 100)
    q, lengths = random(1, 1, HEADS, DIM), torch.tensor([100])
    cache, plan = made(100)
    with pytest.raises(ValueError, match="lengths: shape"):
        attend(plan, cache, q, k, v, torch.tensor([100, 100]))
    with pytest.raises(ValueError, match="q: shape"):
        attend(plan, cache, q[..., :32], k, v, lengths)
    with pytest.raises(TypeError, match="elements are float64"):
        append(cache, k.double(), v, lengths)
    with pytest.raises(ValueError, match="in line"):
        append(cache, k.transpose(2, 3).contiguous().transpose(2, 3), v, lengths)
    with pytest.raises(adamas.Error, match="length"):
        append(cache, k, v, lengths + 1)
    with pytest.raises(TypeError, match="int32"):
        attend(plan, cache, q, k.reshape(1, KV_HEADS, 100, DIM), v, lengths, table=torch.zeros(1, 1))
    with pytest.raises(ValueError, match="layout"):
        append(cache, k, v, lengths, layout="DNH")
    with pytest.raises(ValueError, match="no Cache that is alive"):
        torch.ops.adamas.append(plan.handle, cache.state, k, v, lengths, 1, None, None, "HND")
    if not adamas.gpu_names():
        with pytest.raises(adamas.Error, match="device cuda: ."):
            adamas.torch.Cache(KV_HEADS, DIM, 100, device="cuda")
    decode = BatchDecode(HEADS, KV_HEADS, DIM, 10, 16, 2, 64, device="cpu")
    with pytest.raises(ValueError, match="6 pages; max_tokens are 4"):
        decode.plan(torch.tensor([0, 6]), torch.arange(6), torch.tensor([1]))
    with pytest.raises(ValueError, match="ascend"):
        decode.plan(torch.tensor([0, 3]), torch.arange(2), torch.tensor([1]))
    with pytest.raises(ValueError, match="max_batch is 2"):
        decode.plan_table(torch.zeros(3, 1), torch.zeros(3))
