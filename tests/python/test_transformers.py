"""The door for transformers: tiny random models, beside the attention that they come with."""

import copy
import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import adamas  # noqa: E402
import adamas.transformers  # noqa: E402
from tiny import enlarged  # noqa: E402

SHAPE = dict(
    vocab_size=97, hidden_size=128, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", dict(sliding_window=None)),
    "mistral-window": ("MistralForCausalLM", "MistralConfig", dict(sliding_window=128)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", dict(sliding_window=128, attn_logit_softcapping=5.0, query_pre_attn_scalar=64)),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", dict(sliding_window=128, query_pre_attn_scalar=64, layer_types=["sliding_attention", "full_attention"] * 2)),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", dict(sliding_window=None)),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=128)),
}
ALL = dict(budget=100000)  # reads everything


def made(name, **more):
    model, config, own = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**{**SHAPE, **own, **more})
    return enlarged(getattr(transformers, model)._from_config(config, attn_implementation="eager")).eval()


def prompt(batch=1, tokens=300, seed=1):
    return torch.randint(2, 97, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, **options):
    options = {"max_new_tokens": 12, "do_sample": False, **options}
    with torch.no_grad():
        return model.generate(ids, output_scores=True, return_dict_in_generate=True, **options)


def expect_same(model, ids, settings=ALL, **options):
    plain = generate(model, ids, **options)
    with adamas.enable(model, **settings) as enabled:
        ours = generate(model, ids, **options)
    for a, b in zip(plain.scores, ours.scores):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)
    assert torch.equal(plain.sequences, ours.sequences)
    return enabled


@pytest.mark.parametrize("name", MODELS)
def test_the_budget_that_covers_all_is_the_models_attention(name):
    enabled = expect_same(made(name), prompt())
    assert bool(enabled.stats) == (name != "mistral-window"), "layers with a window are the model's own"


def test_full_policy_and_half_precision():
    expect_same(made("llama"), prompt(), settings=dict(policy="full"))
    model = made("llama").to(torch.bfloat16)
    with adamas.enable(model, **ALL):
        assert generate(model, prompt()).sequences.shape == (1, 312)


def test_batches_that_are_padded_on_the_left():
    ids = prompt(3)
    mask = torch.ones_like(ids)
    for b, padding in enumerate((0, 70, 131)):
        mask[b, :padding], ids[b, :padding] = 0, 0
    expect_same(made("llama"), ids, attention_mask=mask)


def test_beams():
    expect_same(made("llama"), prompt(2), num_beams=3, max_new_tokens=20)


def test_assistants_and_their_crops():
    model, assistant = made("llama"), made("llama", num_hidden_layers=2)
    plain = generate(model, prompt())
    with adamas.enable(model, **ALL) as enabled, adamas.enable(assistant, **ALL):
        ours = generate(model, prompt(), assistant_model=assistant)
    assert enabled.stats["rows_dense"] > 0
    assert torch.equal(plain.sequences, ours.sequences)


def test_turns_reuse_a_cache_and_crop_it():
    model, ids = made("llama"), prompt(1, 400)

    def turns():
        cache = transformers.DynamicCache(config=model.config)
        name = adamas.transformers.cache_parameter(model)
        outs = []
        with torch.no_grad():
            for end in (200, 203, 204, 300, 301):
                first = cache.get_seq_length()
                outs.append(model(ids[:, first:end], **{name: cache}).logits[:, -1])
            cache.crop(-100)
            outs.append(model(ids[:, 201:202], **{name: cache}).logits[:, -1])
        return outs

    plain = turns()
    with adamas.enable(model, **ALL) as enabled:
        ours = turns()
    assert enabled.stats["rows_dense"] > 0
    for a, b in zip(plain, ours):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


def test_a_prompts_cache_is_copied_and_used_again():
    model, ids = made("llama"), prompt(1, 400)
    name = adamas.transformers.cache_parameter(model)
    with adamas.enable(model, budget=48, min_context=0) as enabled, torch.no_grad():
        cache = transformers.DynamicCache(config=model.config)
        model(ids, **{name: cache})
        outs = []
        for _ in range(2):
            own = copy.deepcopy(cache)
            outs.append([model(ids[:, i : i + 1], **{name: own}).logits for i in range(5)])
        assert cache.get_seq_length() == 400 and enabled.stats["rows_sparse"] > 0
    for a, b in zip(*outs):
        assert torch.equal(a, b)


def test_codes_follow_the_rows():
    """Whatever is done to a layer, its codes are those of a layer that gets the same rows at once."""
    from adamas.transformers import AdamasLayer, attention

    with adamas.enable(made("llama"), budget=48, min_context=0) as enabled:
        torch.manual_seed(5)
        layer = AdamasLayer(0, enabled)
        rows = lambda count, batch=3: torch.randn(batch, 2, count, 64)  # noqa: E731
        operations = [
            lambda: layer.update(rows(400), rows(400)),
            lambda: layer.update(rows(1), rows(1)),
            lambda: layer.reorder_cache(torch.tensor([2, 0, 0])),
            lambda: layer.update(rows(3), rows(3)),
            lambda: layer.crop(-70),
            lambda: layer.update(rows(2), rows(2)),
            lambda: layer.reorder_cache(torch.tensor([1, 1, 2])),
            lambda: layer.reorder_cache(torch.tensor([2, 1, 0])),
            lambda: layer.update(rows(500), rows(500)),
            lambda: layer.batch_select_indices(torch.tensor([0, 2])),
            lambda: layer.update(rows(1, 2), rows(1, 2)),
            lambda: layer.batch_repeat_interleave(2),
            lambda: layer.update(rows(1, 4), rows(1, 4)),
        ]
        for i, operation in enumerate(operations):
            operation()
            if layer.buffers is None:
                continue
            query = torch.randn(layer.keys.shape[0], 4, 1, 64)
            outs = []
            for of in (layer, AdamasLayer(0, enabled)):
                if of is not layer:
                    of.update(layer.keys.clone(), layer.values.clone())
                of.keys.adamas_layer = of
                outs.append(attention(None, query, of.keys, of.values, None, scaling=0.125)[0])
            torch.testing.assert_close(*outs, msg=f"operation {i}")
        assert enabled.stats["rows_sparse"] > 0


def test_sparse_rows_are_near_the_models():
    model, ids = made("llama"), prompt(1, 3000)
    plain = generate(model, ids, max_new_tokens=4)
    with adamas.enable(model, budget="auto", min_context=0) as enabled:
        ours = generate(model, ids, max_new_tokens=4)
    counts = adamas.transformers.stats(model) if hasattr(model, "_adamas") else enabled.stats
    assert counts["rows_sparse"] > 0
    assert counts["tokens_selected"] < counts["tokens_visible"]
    a, b = plain.scores[1].log_softmax(-1), ours.scores[1].log_softmax(-1)
    assert (a.exp() * (a - b)).sum() < 0.02


STATIC = pytest.mark.skipif(
    not hasattr(transformers.cache_utils.StaticLayer(max_cache_len=1), "cumulative_length"),
    reason="static layers of this transformers do not know their length",
)


@STATIC
@pytest.mark.parametrize("name, layers, padding", [("llama", 4, 0), ("llama", 4, 70), ("gemma3", 2, 0), ("gpt-oss", 2, 0)])
def test_static_caches(name, layers, padding):
    ids = prompt(2)
    mask = torch.ones_like(ids)
    mask[1, :padding], ids[1, :padding] = 0, ids[1, :padding] * (padding == 0)
    enabled = expect_same(made(name), ids, attention_mask=mask, cache_implementation="static")
    assert enabled.stats["rows"] == 2 * layers * 11 and enabled.stats["rows_dense"] == enabled.stats["rows"]


def decode(model, forward, cache, steps=5):
    """The logits of steps with a token each; they begin with the cache as it is."""
    name = adamas.transformers.cache_parameter(model)
    with torch.no_grad():
        return torch.stack([forward(input_ids=torch.full((2, 1), 5 + i), **{name: cache}).logits for i in range(steps)])


@STATIC
def test_a_step_with_a_static_cache_is_traced_whole(monkeypatch):
    """Sparse steps, compiled: the same logits, and K is not copied."""
    import adamas.torch

    model, ids, addresses = made("llama", num_hidden_layers=2), prompt(2, 900), set()
    tell = adamas.torch.Cache.append_rows
    monkeypatch.setattr(
        adamas.torch.Cache, "append_rows", lambda self, k, *of, **more: (addresses.add(k.data_ptr()), tell(self, k, *of, **more))[1]
    )
    torch._dynamo.reset()
    with adamas.enable(model, min_context=0) as enabled:
        caches = [transformers.StaticCache(config=model.config, max_cache_len=1000) for _ in range(2)]
        for cache in caches:
            decode(model, lambda input_ids, **more: model(ids, **more), cache, 1)
        plain = decode(model, model, caches[0])
        addresses.clear()
        traced = decode(model, torch.compile(model, fullgraph=True), caches[1])
        assert addresses == {layer.keys.data_ptr() for layer in caches[1].layers}
        assert enabled.stats["rows_sparse"] == 2 * 2 * 2 * 5
    torch.testing.assert_close(traced, plain, atol=2e-3, rtol=1e-3)


@STATIC
def test_generate_compiles_steps_with_static_caches():
    """As it does on a GPU of its own accord. A padded batch gets its mask, also from a model that was compiled without."""
    model, ids = made("llama", num_hidden_layers=2), prompt(2)
    compiled = transformers.CompileConfig(fullgraph=True, mode="default")
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    with adamas.enable(model, **ALL) as enabled:
        for padding, rows in ((0, 2 * 2 * 11), (70, 0)):
            mask = torch.ones_like(ids)
            mask[1, :padding], ids[1, :padding] = 0, ids[1, :padding] * (padding == 0)
            before = enabled.stats.get("rows", 0)
            ours = generate(model, ids, attention_mask=mask, cache_implementation="static", compile_config=compiled)
            assert enabled.stats["rows"] - before == rows
            with torch.no_grad():
                model.set_attn_implementation("sdpa")
                plain = generate(model, ids, attention_mask=mask)
                model.set_attn_implementation("adamas")
            assert torch.equal(plain.sequences, ours.sequences)


@STATIC
def test_a_static_cache_is_cut_cleared_and_taken_over():
    model, ids = made("llama", num_hidden_layers=2), prompt(2, 500)
    name = adamas.transformers.cache_parameter(model)

    def all_logits(sparse):
        cache, outs = transformers.StaticCache(config=model.config, max_cache_len=600), []
        with torch.no_grad():
            if not sparse:
                adamas.disable(model)
            model(ids, **{name: cache})
            if not sparse:
                outs.append(decode(model, model, cache))
                return cache, outs[0]
            outs.append(decode(model, model, cache))
            cache.crop(-5)
            outs.append(decode(model, model, cache))
            cache.reset()
            model(ids, **{name: cache})
            outs.append(decode(model, model, cache))
        return cache, outs

    with adamas.enable(model, budget=100, min_context=0) as enabled:
        _, outs = all_logits(True)
        assert enabled.stats["rows_sparse"] > 0
        for other in outs[1:]:
            torch.testing.assert_close(other, outs[0], atol=1e-5, rtol=1e-5)
    cache, plain = all_logits(False)
    for layer in cache.layers:  # plain ones, which not every version can crop
        layer.cumulative_length.sub_(5)
    with adamas.enable(model, **ALL) as enabled:  # a cache that was there before
        torch.testing.assert_close(decode(model, model, cache), plain, atol=2e-3, rtol=1e-3)
        assert enabled.stats["rows"] > 0


def test_what_is_not_served_is_dense_and_said(caplog):
    model = made("mistral-window")
    adamas.transformers._say_once.cache_clear()
    plain = generate(model, prompt())
    with adamas.enable(model, **ALL), caplog.at_level("WARNING"):
        ours = generate(model, prompt())
    assert torch.equal(plain.sequences, ours.sequences)
    assert caplog.text.count("attended to densely") == 1


def test_a_model_is_as_before_afterwards():
    model = made("llama")
    before = generate(model, prompt()).sequences
    adamas.enable(model, budget=64)
    adamas.enable(model, budget=32)
    adamas.disable(model)
    adamas.disable(model)
    assert model.config._attn_implementation == "eager" and not model._forward_pre_hooks
    assert torch.equal(generate(model, prompt()).sequences, before)


@STATIC
def test_the_benchmarks(tmp_path):
    """A model is decoded; its keys are recorded, and serve another shape. What reads all of them gives PyTorch's tokens."""

    def bench(*arguments):
        done = subprocess.run([sys.executable, "-m", "adamas.bench", *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made("llama").save_pretrained(tmp_path / "model")
    [row] = json.loads(bench("decode", tmp_path / "model", "--tokens", 300, "--steps", 4, "--set", "budget=1000", "--json"))
    assert abs(row["cases"]["adamas"]["divergence"]) < 1e-5 and row["cases"]["adamas"]["stats"]["rows"] == 4 * 4
    bench("record", tmp_path / "model", "--tokens", 500, "--layers", 2, "--out", tmp_path / "keys.npz")
    for keys in ([], ["--keys", tmp_path / "keys.npz"]):
        text = bench(
            "model", "--shape", "tiny", "--layers", 2, "--tokens", 700, "--batch", 2, "--dtype", "float32", "--device", "cpu",
            "--sdpa", "flash,efficient", "--compile", "nothing", "--ours", "budget=1000", "--ours", "min_context=0,budget=32",
            "--out", tmp_path / "figures.json", *keys,
        )  # fmt: skip
        [figures] = json.loads((tmp_path / "figures.json").read_text())["results"]
        found = figures["found"]
        assert set(found) == {"none", "sdpa flash", "adamas", "adamas budget=1000", "adamas min_context=0,budget=32"}
        assert set(figures["missing"]) == {"sdpa efficient"} and "No viable backend" in text
        assert abs(found["adamas budget=1000"]["divergence"]) < 1e-5 < found["adamas min_context=0,budget=32"]["divergence"]
        assert all(x["tokens_per_second"] == pytest.approx(2000 / x["ms"]) for x in found.values())
