"""The package on a GPU: beside the same calls with the definitions and on the CPU, within docs/gpu.md; graphs, streams, torch.compile, models.

Label gpu. Skipped where there is no GPU, or a library that sees none."""

import functools
import re

import pytest

torch = pytest.importorskip("torch")
import adamas  # noqa: E402
import adamas.torch  # noqa: E402
from adamas.torch import BatchDecode, append, attend  # noqa: E402
from test_examples import EXAMPLES, run, save_llama  # noqa: E402

if not torch.cuda.is_available():
    pytest.skip("no GPU: torch.cuda is not available", allow_module_level=True)
if not adamas.gpu_names():
    pytest.skip(f"no GPU: {adamas.gpu_reason()}", allow_module_level=True)

HEADS, KV_HEADS, DIM = 8, 2, 64
GPU = torch.device("cuda", 0)
LISTED, SAME = 1.4e-3, 1.5e-5  # how far outputs are from the definitions' where a list ends a token apart, and otherwise: docs/gpu.md


def random(*shape, seed=0, dtype=torch.float16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(sequences, tokens, dtype=torch.float16):
    return random(sequences, KV_HEADS, tokens, DIM, dtype=dtype), random(sequences, KV_HEADS, tokens, DIM, seed=1, dtype=dtype)


def made(device, tokens, sequences=1, max_rows=None, **settings):
    config = adamas.Config(**{"min_context": 0, **settings})
    return (
        adamas.torch.Cache(KV_HEADS, DIM, tokens, sequences, config, device=device),
        adamas.torch.Plan(HEADS, KV_HEADS, DIM, tokens, config, 2, device, max_rows or sequences),
    )


def both(call, *tensors):
    """call(device, *tensors there) with the definitions, on the CPU, and on the GPU; both results, on the CPU."""
    outs = [call(device, *(x.to(where) for x in tensors)) for device, where in (("reference", "cpu"), (GPU, GPU))]
    return [[x.cpu() for x in out] for out in outs]


def expect_close(expected, found, bound):
    for a, b in zip(expected, found):
        assert torch.isfinite(b).all()
        assert (a - b).abs().max() <= bound * max(1.0, a.abs().max()), (a - b).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "bound, settings",
    [(LISTED, {}), (SAME, dict(budget=100)), (SAME, dict(policy="full")), (SAME, dict(policy="quest", budget=128)), (SAME, dict(policy="streaming", budget=128))],
)
def test_steps_are_those_of_the_reference(dtype, bound, settings):
    def call(device, q, k, v, lengths):
        cache, plan = made(device, 3000, 2, 6, **settings)
        append(cache, k, v, lengths, rows=3000)
        return attend(plan, cache, q, k, v, lengths, scale=0.2)

    found = both(call, random(2, 3, HEADS, DIM, seed=2, dtype=dtype), *rows(2, 3000, dtype), torch.tensor([3000, 1234]))
    expect_close(*found, bound)


def test_a_budget_that_covers_all_is_pytorchs_attention():
    k, v = (x.to(GPU) for x in rows(1, 500, torch.float32))
    q, lengths = random(1, 1, HEADS, DIM, seed=2, dtype=torch.float32).to(GPU), torch.tensor([500], device=GPU)
    cache, plan = made(GPU, 500, budget=500)
    append(cache, k, v, lengths, rows=500)
    expected = torch.nn.functional.scaled_dot_product_attention(q.double().transpose(1, 2), k.double(), v.double(), enable_gqa=True)
    expect_close([expected.transpose(1, 2).float()], [attend(plan, cache, q, k, v, lengths)[0]], SAME)


def test_arrays_of_the_existing_classes():
    """adamas.Cache and adamas.Plan themselves: append of one sequence, cut, share, selection."""
    k, v = rows(2, 2000)
    k[1], v[1] = k[0], v[0]
    q = random(1, 1, HEADS, DIM, seed=2)
    outs, selections = [], []
    for device in ("cpu", "cuda"):
        config = adamas.Config(budget=100, min_context=0)
        cache = adamas.Cache(KV_HEADS, DIM, 2000, 2, config, device=device)
        plan = adamas.Plan(HEADS, KV_HEADS, DIM, 2000, config, device=device)
        on = [x.to(cache.device.name if cache.device.is_gpu else "cpu") for x in (q, k, v)]
        cache.append(0, 0, 2000, on[1], on[2])
        cache.truncate(0, 1536)
        cache.share(0, 1, 1536)
        result = plan.step(cache, *on, lengths=[1536], sequences=[1])
        assert bool(result.stats) == (device == "cpu")
        outs.append([result.out.cpu(), result.lse.cpu()])
        selections.append(plan.selection(3).tolist())
        cache.clear()
    expect_close(*outs, SAME)
    assert selections[0] == selections[1] and len(selections[0]) == 100
    with pytest.raises(ValueError, match="it has to be on cuda"):
        cache.append(0, 0, 1, k, v)
    with pytest.raises(adamas.Error, match="max_rows"):
        plan.step(cache, on[0].expand(2, 1, HEADS, DIM), on[1], on[2], lengths=[10, 10])


def test_stats():
    """A GPU's steps add up where it is asked for, a graph's replays as well: what a CPU counts."""
    k, v = rows(2, 2000)
    q, lengths = random(2, 1, HEADS, DIM, seed=2), [2000, 1700]
    counts = []
    for device in ("cpu", GPU):
        cache, plan = made(device, 2000, 2, budget=100, stats=1)
        on = [x.to(device) for x in (k, v)]
        for b in range(2):
            cache.append(b, 0, lengths[b], *on)
        step = functools.partial(plan.step, cache, q.to(device), *on, torch.tensor(lengths, device=device), wanted=())
        step()
        if device == GPU:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            graph.replay()
        else:
            step()
        counts.append(plan.counts)
    assert counts[0]["rows_sparse"] == 4 and counts[0]["tokens_selected"] == 4 * HEADS * 100
    for name in ("rows_sparse", "rows_dense", "tokens_visible", "tokens_selected", "rows_read", "heads_sparse", "heads_guarded"):
        assert counts[0][name] == counts[1][name], name


def test_opcheck():
    k, v = (x.to(GPU) for x in rows(2, 700))
    q, lengths = random(2, 1, HEADS, DIM, seed=2).to(GPU), torch.tensor([700, 300], device=GPU)
    cache, plan = made(GPU, 700, 2, budget=64)
    torch.library.opcheck(torch.ops.adamas.append.default, (cache.handle, cache.state, k, v, lengths, 700, None, None, "HND"))
    torch.library.opcheck(
        torch.ops.adamas.attend.default,
        (plan.handle, cache.handle, cache.state, q, k, v, lengths, None, None, "HND", True, None, 0.0, None, None, None, 1.0, 1.0),
    )


def step(cache, plan, k, v, lengths, q, new_k, new_v):
    batch = torch.arange(len(lengths), device=k.device)
    k[batch, :, lengths] = new_k
    v[batch, :, lengths] = new_v
    lengths.add_(1)
    append(cache, k, v, lengths)
    out, lse = attend(plan, cache, q, k, v, lengths)
    return torch.cat([out, lse[..., None]], -1)


def decoded(run, count=40, device=GPU):
    """The outputs of `count` steps over two sequences. run(state) -> a function of (q, k, v) of a token."""
    k, v = (x.to(device) for x in rows(2, 1000))
    cache, plan = made(device, 1000, 2, budget=64)
    lengths, outs = torch.tensor([900, 255], device=device), []
    append(cache, k, v, lengths, rows=900)
    token = run((cache, plan, k, v, lengths))
    for i in range(count):
        new = [random(2, *shape, seed=10 * i + j).to(device) for j, shape in enumerate(((1, HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, DIM)))]
        outs.append(token(*new).clone())
    return [torch.stack(outs).cpu()]


def plainly(state):
    return lambda *new: step(*state, *new)


def captured(state):
    """A graph of a step, captured once. Capturing runs nothing, but for the warm-up before it, whose rows are written over."""
    cache, plan, k, v, lengths = state
    new = [torch.zeros(2, *shape, dtype=k.dtype, device=GPU) for shape in ((1, HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, DIM))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        before = lengths.clone()
        step(*state, *new)
        lengths.copy_(before)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(*state, *new)

    def token(*given):
        for to, of in zip(new, given):
            to.copy_(of)
        graph.replay()
        return out

    return token


def test_one_graph_serves_growing_contexts():
    expected = decoded(plainly)
    assert torch.equal(decoded(captured)[0], expected[0])
    expect_close(decoded(plainly, device="cpu"), expected, SAME)


def test_a_traced_step_is_the_same():
    torch._dynamo.reset()
    traced = torch.compile(step, fullgraph=True)
    expected = decoded(plainly, 4)
    assert torch.equal(decoded(lambda state: lambda *new: traced(*state, *new), 4)[0], expected[0])


def test_work_goes_into_the_current_stream():
    """Behind a long wait of a stream of its own, steps have to wait, too: they read what the stream writes before them."""
    k, v = (x.to(GPU) for x in rows(1, 4000))
    q, lengths = random(1, 1, HEADS, DIM, seed=2).to(GPU), torch.tensor([4000], device=GPU)
    cache, plan = made(GPU, 4000, budget=64)
    append(cache, k, v, lengths, rows=4000)
    expected = attend(plan, cache, q, k, v, lengths)[0]
    late_k, late_cache = torch.zeros_like(k), made(GPU, 4000, budget=64)[0]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        late_k.copy_(k)
        append(late_cache, late_k, v, lengths, rows=4000)
        out = attend(plan, late_cache, q, late_k, v, lengths)[0]
        assert not stream.query(), "the call waited"
    stream.synchronize()
    assert torch.equal(out, expected)
    # What works in the default stream keeps its place, too.
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late_k.copy_(k)
        late_cache.append(0, 0, 4000, late_k, v)
        late_cache.truncate(0, 3008)
        out = attend(plan, late_cache, q, late_k, v, lengths - 992)[0]
    stream.synchronize()
    append(cache, k, v, lengths - 992, rows=3008)
    assert torch.equal(out, attend(plan, cache, q, k, v, lengths - 992)[0])


@pytest.mark.parametrize("page, layout", [(16, "NHD"), (64, "NHD"), (64, "HND"), (128, "NHD")])
def test_pages(page, layout):
    """Pages of the GPU give the bits of the same rows without; other tables go into the same graph."""
    k, v = (x.to(GPU) for x in rows(3, 1024))
    q = random(3, HEADS, DIM, seed=2).to(GPU)
    each = 1024 // page
    table = torch.randperm(3 * each, generator=torch.Generator().manual_seed(3)).reshape(3, each).to(GPU, torch.int32)
    paged = []
    for x in (k, v):
        of = torch.empty(3 * each, KV_HEADS, page, DIM, dtype=x.dtype, device=GPU)
        of[table.long()] = x.reshape(3, KV_HEADS, each, page, DIM).transpose(1, 2)
        paged.append(of if layout == "HND" else of.transpose(1, 2).contiguous())
    kv = torch.stack(paged, 1)
    config = adamas.Config(budget=64, min_context=0)
    decode = BatchDecode(HEADS, KV_HEADS, DIM, 3 * each, page, 3, 1024, layout=layout, config=config, device=GPU)
    cache, plan = made(GPU, 1024, 3, budget=64)
    graph, out = None, None
    for lengths in ([1000, 517, 640], [1001, 518, 641], [1024, 512, 1]):
        on = torch.tensor(lengths, device=GPU)
        append(cache, k, v, on, rows=1024)
        expected = attend(plan, cache, q[:, None], k, v, on)[0][:, 0].half()
        counts = [-(-n // page) for n in lengths]
        indptr = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
        indices = torch.cat([table[b, :n] for b, n in enumerate(counts)])
        decode.plan(indptr, indices, torch.tensor([(n - 1) % page + 1 for n in lengths]))
        decode.append(kv, rows=1024)
        if graph is None:
            decode.run(q, kv)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = decode.run(q, kv)
        graph.replay()
        assert torch.equal(out, expected), lengths


def model(**more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=256, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=None, **more,
    )  # fmt: skip
    from tiny import enlarged

    made = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    return enlarged(made, std=0.05).eval().to(GPU, torch.float32)


def generate(of, ids, **options):
    with torch.no_grad():
        return of.generate(ids, output_scores=True, return_dict_in_generate=True, do_sample=False, **{"max_new_tokens": 8, **options})


@pytest.mark.parametrize(
    "options",
    [{}, dict(num_beams=3), dict(cache_implementation="static", disable_compile=True), dict(cache_implementation="static")],
    ids=["dynamic", "beams", "static", "static-compiled"],
)
def test_models_generate_the_same(options):
    """The last one: transformers compiles the step and replays it as a graph of its own accord."""
    of, ids = model(), torch.randint(2, 97, (2, 300), generator=torch.Generator().manual_seed(1)).to(GPU)
    plain = generate(of, ids, **{**options, "disable_compile": True})
    torch._dynamo.reset()
    with adamas.enable(of, budget=100000) as enabled:
        ours = generate(of, ids, **options)
    assert enabled.stats["rows"] > 0
    assert torch.equal(plain.sequences, ours.sequences)
    for a, b in zip(plain.scores, ours.scores):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=1e-3)


def padded(tokens, padding):
    ids = torch.randint(2, 97, (len(padding), tokens), generator=torch.Generator().manual_seed(1)).to(GPU)
    mask = torch.ones_like(ids)
    for b, count in enumerate(padding):
        mask[b, :count], ids[b, :count] = 0, 0
    return ids, mask


def test_batches_that_are_padded_on_the_left():
    """The tokens that the model's own attention gives; dynamic caches and static ones."""
    of, (ids, mask) = model(), padded(300, (0, 70, 131))
    plain = generate(of, ids, attention_mask=mask)
    for options in ({}, dict(cache_implementation="static", disable_compile=True)):
        with adamas.enable(of, budget=100000, stats=1) as enabled:
            ours = generate(of, ids, attention_mask=mask, **options)
        assert enabled.stats["rows"] == enabled.stats["rows_dense"] == 3 * 3 * 7
        assert torch.equal(plain.sequences, ours.sequences)
        for a, b in zip(plain.scores, ours.scores):
            torch.testing.assert_close(a, b, atol=5e-3, rtol=1e-3)


def test_what_is_hidden_does_not_matter():
    """Sparse rows behind padding of whole blocks: other tokens in it leave the logits as they are. So what is hidden is neither
    read, nor in the means, nor in what the estimates are relative to."""
    of, (ids, mask) = model(), padded(3000, (0, 1280))
    others = torch.where(mask == 0, torch.full_like(ids, 7), ids)
    with adamas.enable(of, min_context=0, stats=1) as enabled:
        found = [generate(of, x, attention_mask=mask) for x in (ids, others)]
        assert enabled.stats["rows_sparse"] == enabled.stats["rows"] == 2 * 2 * 3 * 7
    assert torch.equal(found[0].sequences[:, 3000:], found[1].sequences[:, 3000:])
    for a, b in zip(found[0].scores, found[1].scores):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, dict(budget=100), dict(policy="full"), dict(policy="quest", budget=128)])
def test_masks(settings):
    """Padding, holes, and numbers that are added to scores."""
    k, v = rows(3, 1500)
    q = random(3, 2, HEADS, DIM, seed=2)
    mask = torch.zeros(3, 2, 1500)
    mask[0, :, :700] = -torch.inf
    mask[1][random(2, 1500, seed=3) > 1] = -torch.inf
    mask[2] = random(2, 1500, seed=4)
    lengths = torch.tensor([1500, 1500, 1300])

    def call(device, *of):
        cache, plan = made(device, 1500, 3, 6, **settings)
        append(cache, *of[1:3], of[3], rows=1500)
        return attend(plan, cache, *of[:4], mask=of[4], causal=False)

    expect_close(*both(call, q, k, v, lengths, mask), SAME if settings else 7.5e-3)


@pytest.mark.parametrize("way", ["graph", "compile"])
def test_a_models_step_is_captured(way):
    """Decoding with a static cache, as a graph of the whole model: the logits of the same steps without."""
    transformers = pytest.importorskip("transformers")
    of, ids = model(), torch.randint(2, 97, (2, 3000), generator=torch.Generator().manual_seed(1)).to(GPU)
    adamas.enable(of, min_context=0)
    name = adamas.transformers.cache_parameter(of)

    def logits(captured):
        cache = transformers.StaticCache(config=of.config, max_cache_len=3100)
        token, outs = torch.ones(2, 1, dtype=torch.int64, device=GPU), []
        with torch.no_grad():
            forward = lambda **given: of(**given, **{name: cache})  # noqa: E731
            forward(input_ids=ids, logits_to_keep=1)
            outs.append(forward(input_ids=token).logits)
            if captured and way == "compile":
                forward = torch.compile(forward, fullgraph=True, mode="reduce-overhead")
            if captured and way == "graph":
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = forward(input_ids=token).logits
            for i in range(2, 22):
                token.fill_(i)
                if captured and way == "graph":
                    graph.replay()
                    outs.append(out.clone())
                else:
                    outs.append(forward(input_ids=token).logits.clone())
            assert int(cache.get_seq_length()) == 3021
        return torch.stack(outs)

    torch._dynamo.reset()
    torch.testing.assert_close(logits(True), logits(False), atol=5e-3, rtol=5e-3)
    adamas.disable(of)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two GPUs")
def test_a_model_over_two_gpus(tmp_path):
    pytest.importorskip("accelerate", reason="transformers needs it for tp_plan")
    save_llama(tmp_path, vocab_size=128, hidden_size=256, intermediate_size=256, num_attention_heads=8)
    of = (EXAMPLES / "tensor_parallel.py", tmp_path, 400, "--set", "budget=64", "--set", "min_context=0")
    (alone,), ranks = (re.findall(r"tokens (\[.*?\])", run(*of, ranks=n)) for n in (0, 2))
    assert ranks == [alone, alone] and alone.count(",") == 19
