"""``python -m adamas.bench model``: decoding of whole models of well-known shapes, with random weights, on a GPU.

A step is the model's forward of transformers for one token of each sequence, captured once as a CUDA graph and replayed, the
choice of the next token included. K and V lie in a static cache that is filled with made-up rows, so nothing is read before.
What differs from one measurement to the next is attention alone: PyTorch's, over exactly the rows there are; or Adamas.
"""

import gc
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.cache_utils import StaticCache, StaticLayer
from transformers.masking_utils import AttentionMaskInterface

from . import torch as ops
from . import transformers as door
from ._layers import AdamasStaticLayer

SHAPES = {
    "llama-2-7b": dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
        vocab_size=32000,
    ),
    "llama-3-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, rope_theta=500000.0,
    ),
    "tiny": dict(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=1000,
    ),
}  # fmt: skip
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WARM, ROUNDS, REPLAYS = 3, 5, 8  # steps before; rounds in which all take turns; steps of each in a round
STEPS = WARM + 2 + ROUNDS * REPLAYS
SHARED = 0.8  # of their direction the queries of a KV head's group share


def add_arguments(parser):
    parser.add_argument("--shape", default="llama-2-7b", help=f"{', '.join(SHAPES)}; several: a,b (%(default)s)")
    parser.add_argument("--tokens", default="32768", help="contexts: 32768,131072 (%(default)s)")
    parser.add_argument("--batch", default="1", help="sequences: 1,8 (%(default)s)")
    parser.add_argument("--dtype", default="float16", help="of weights, K and V (%(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu, without graphs (%(default)s)")
    parser.add_argument(
        "--ours", action="append", metavar="SETTINGS",
        help="of Adamas, measured beside the defaults: budget=128,sinks=4; may be repeated",
    )  # fmt: skip
    parser.add_argument("--sdpa", default="flash,cudnn,efficient", help="PyTorch's back ends (%(default)s)")
    parser.add_argument(
        "--deviation", type=float, default=4.3, help="of made-up scores (%(default)s); random weights alone attend flatly"
    )
    parser.add_argument("--keys", help="a file of `record`: keys, values and queries of a real model, repeated to the shape")
    parser.add_argument(
        "--compile", choices=["nothing", "parts", "all"], default="parts",
        help="parts: norms, rotary embedding and MLP, as serving engines fuse them; all: the whole forward, minutes (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, help="of the model, instead of the shape's")
    parser.add_argument("--out", help="a file for the same figures as JSON")


@dataclass
class Case:
    """One shape, context and batch: its K and V, and what attends to them."""

    model: object
    tokens: int
    batch: int
    keys: list  # of each set [batch, kv_heads, tokens + STEPS, head_dim]; layers take turns with the sets
    values: list
    queries: object  # [layers, batch, q_heads, 1, head_dim] that stand for the model's own; None
    yes: object  # a true tensor
    kind: str = "none"

    def attend(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        if self.queries is not None:
            # Chosen on the device: no compiler leaves the model's own queries out.
            query = torch.where(self.yes, self.queries[module.layer_idx % len(self.queries)], query)
        if self.kind == "none":
            return query.transpose(1, 2).contiguous(), None
        if self.kind == "adamas":
            return door.attention(module, query, key, value, None, scaling=scaling)
        with sdpa_kernel(BACKENDS[self.kind]):
            key, value = (x[:, :, : self.tokens] for x in (key, value))
            grouped = query.shape[1] != key.shape[1]
            if grouped and self.kind == "efficient":  # which has no groups; as a batch of groups K and V are not copied
                rows = query.reshape(query.shape[0] * key.shape[1], -1, 1, query.shape[3]).transpose(1, 2)
                key, value = (x.flatten(0, 1).unsqueeze(1) for x in (key, value))
                out = torch.nn.functional.scaled_dot_product_attention(rows, key, value, scale=scaling)
                out = out.transpose(1, 2).reshape(query.shape)
            else:
                out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None


current = None  # the Case that is measured


def _attention(*args, **kwargs):
    return current.attend(*args, **kwargs)


def make_model(shape, layers, dtype, device, deviation):
    of = {**SHAPES[shape], "max_position_embeddings": 1 << 20, "use_cache": True}
    if layers:
        of["num_hidden_layers"] = layers
    if "rope_theta" in of and "rope_parameters" in transformers.LlamaConfig().to_dict():
        of["rope_parameters"] = {"rope_type": "default", "rope_theta": of.pop("rope_theta")}
    config = transformers.LlamaConfig(**of)
    AttentionInterface.register("bench", _attention)
    AttentionMaskInterface.register("bench", lambda **given: None)
    config._attn_implementation = "bench"
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    assert all(p.dtype == dtype and p.device.type == torch.device(device).type for p in model.parameters())
    # Queries whose scores with keys of variance 1 deviate by `deviation`.
    for layer in model.model.layers:
        weight = layer.self_attn.q_proj.weight.data
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        own = torch.randn_like(weight).view(groups, heads // groups, -1, weight.shape[1])
        common = torch.randn_like(own[:, :1])
        mixed = own if heads == groups else SHARED * common + math.sqrt(1 - SHARED**2) * own
        weight.copy_((deviation / math.sqrt(weight.shape[1]) * mixed).view_as(weight))
    return model


def fuse():
    """Small kernels that follow each other become one, for all ways to attend alike."""
    from transformers.models.llama import modeling_llama as of

    options = {"fullgraph": True, "dynamic": False}
    of.LlamaRMSNorm.forward = torch.compile(of.LlamaRMSNorm.forward, **options)
    of.LlamaMLP.forward = torch.compile(of.LlamaMLP.forward, **options)
    of.apply_rotary_pos_emb = torch.compile(of.apply_rotary_pos_emb, **options)


def rows_of(config, tokens, batch, dtype, device, recorded):
    """K and V of as many layers as there is memory for; and the queries that go with them."""
    shape = (batch, config.num_key_value_heads, tokens + STEPS, config.hidden_size // config.num_attention_heads)
    element = torch.empty((), dtype=dtype).element_size()
    each = 2 * element * math.prod(shape)
    sets = config.num_hidden_layers
    if torch.device(device).type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] - (3 << 30)
        sets = min(sets, int(free / (each * 1.2)))  # a tenth for codes, twice
    if sets < 1:
        return None
    keys, values = ([torch.empty(shape, dtype=dtype, device=device) for _ in range(sets)] for _ in range(2))
    queries = None
    if recorded is None:
        for x in (*keys, *values):
            x.normal_()
        return keys, values, queries
    import numpy

    with numpy.load(recorded) as file:
        given = {name: torch.from_numpy(file[name]) for name in ("keys", "values", "queries")}
    dims, own = shape[-1], given["keys"].shape[-1]
    times = dims // own
    if dims % own != 0:
        sys.exit(f"{recorded}: head_dim {own}, of which {dims} is no multiple")
    for kind, into in (("keys", keys), ("values", values)):
        for i, x in enumerate(into):
            of = given[kind][i % len(given[kind])].to(device, dtype).repeat(1, 1, times)  # [kv_heads, tokens, dims]
            for h in range(shape[1]):
                for t in range(0, shape[2], of.shape[1]):
                    x[:, h, t : t + of.shape[1]] = of[h % len(of), : shape[2] - t]
    # The dims are repeated, so a product is `times` as large; the scale is smaller by the root of that.
    of = given["queries"].to(device, dtype).repeat(1, 1, times) / math.sqrt(times)
    heads = torch.arange(config.num_attention_heads, device=device)
    group = config.num_attention_heads // shape[1]
    own_group = of.shape[1] // given["keys"].shape[1]
    which = heads // group % given["keys"].shape[1] * own_group + heads % group % own_group
    queries = of[:, which][:, None, :, None].expand(-1, batch, -1, -1, -1).contiguous()
    return keys, values, queries


def fixed(layer, keys, values, tokens):
    """A layer of a static cache with these rows in it."""
    layer.keys, layer.values = keys, values
    layer.device, layer.dtype, layer.is_initialized = keys.device, keys.dtype, True
    layer.cumulative_length = torch.tensor(tokens, device=keys.device)
    for x in (keys, values, layer.cumulative_length):
        torch._dynamo.mark_static_address(x)
    return layer


def cache_of(case, enabled):
    """A static cache with all of the case's rows but the newest; with codes, when Adamas is to attend."""
    capacity, sets, there = case.keys[0].shape[2], len(case.keys), case.tokens - 1
    cache, codes = StaticCache(config=case.model.config, max_cache_len=capacity), []
    for i in range(len(case.model.model.layers)):
        keys, values = case.keys[i % sets].detach(), case.values[i % sets].detach()  # tensors of its own, of the same memory
        if enabled is None:
            cache.layers[i] = fixed(StaticLayer(capacity), keys, values, there)
            continue
        layer = cache.layers[i] = fixed(AdamasStaticLayer(i, enabled, capacity), keys, values, there)
        layer.begin()
        if i < sets:
            codes.append(ops.Cache(keys.shape[1], keys.shape[3], capacity, case.batch, enabled.config, i, keys.device))
            ops.append(codes[i], keys, values, layer.lengths(), rows=there)
        layer.codes = codes[i % sets]
    return cache


class Step:
    """A step of one way to attend: a graph on a GPU."""

    def __init__(self, case, kind, settings, compiled):
        global current
        current, case.kind = case, kind
        self.case, self.kind, self.seconds = case, kind, []
        model, device = case.model, case.keys[0].device
        enabled = door.enable(model, **settings) if kind == "adamas" else None
        self.cache = cache_of(case, enabled)
        door.disable(model)  # what is there stays; caches of others must not become ours
        model.set_attn_implementation("bench")
        self.token = torch.ones(case.batch, 1, dtype=torch.int64, device=device)
        name = door.cache_parameter(model)
        forward = lambda: model(input_ids=self.token, **{name: self.cache}).logits  # noqa: E731
        with torch.no_grad():
            self.logits = forward()[:, -1].float().log_softmax(-1)  # and plans are made
        if compiled:
            torch._dynamo.reset()
            forward = torch.compile(forward, fullgraph=True, dynamic=False)

        def run():
            self.token.copy_(forward()[:, -1:].argmax(-1))

        self.run = run
        if device.type != "cuda":
            with torch.no_grad():
                for _ in range(WARM):
                    run()
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(WARM):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize(device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            run()
        self.run = self.graph.replay
        self.run()
        torch.cuda.synchronize(device)

    def measure(self):
        """Seconds of a step, over a round of them."""
        global current
        current, self.case.kind = self.case, self.kind
        device = self.token.device
        if device.type != "cuda":
            with torch.no_grad():
                started = time.perf_counter()
                for _ in range(REPLAYS):
                    self.run()
                self.seconds.append((time.perf_counter() - started) / REPLAYS)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(REPLAYS):
            self.run()
        end.record()
        end.synchronize()
        self.seconds.append(begin.elapsed_time(end) / 1000 / REPLAYS)


def settings_of(text):
    return dict(one.split("=", 1) for one in text.split(",") if one)


def measure(model, tokens, batch, dtype, device, arguments):
    """One shape, context and batch; a dict of its figures."""
    made = rows_of(model.config, tokens, batch, dtype, device, arguments.keys)
    if made is None:
        return {"tokens": tokens, "batch": batch, "why": "K and V of one layer do not fit into the GPU's memory"}
    case = Case(model, tokens, batch, *made, torch.ones((), dtype=torch.bool, device=device))
    wanted = [("none", "none", {})] + [(f"sdpa {name}", name, {}) for name in arguments.sdpa.split(",") if name]
    wanted += [("adamas", "adamas", {})] + [(f"adamas {text}", "adamas", settings_of(text)) for text in arguments.ours or []]
    steps, missing = {}, {}
    compiled = arguments.compile == "all" and len(case.keys) == len(model.model.layers)  # not where K is two layers'
    for name, kind, settings in wanted:
        try:
            steps[name] = Step(case, kind, settings, compiled)
        except RuntimeError as error:  # what a back end does not serve, or no memory: the others are measured all the same
            missing[name] = str(error).split("\n")[0]
    for _ in range(ROUNDS):
        for step in steps.values():
            step.measure()
    exact = next((step.logits for name, step in steps.items() if name.startswith("sdpa")), None)
    found = {}
    for name, step in steps.items():
        seconds = statistics.median(step.seconds)
        found[name] = {
            "ms": 1000 * seconds,
            "range": [1000 * min(step.seconds), 1000 * max(step.seconds)],
            "tokens_per_second": batch / seconds,
        }
        if exact is not None and name != "none":
            found[name]["divergence"] = (exact.exp() * (exact - step.logits)).sum(-1).mean().item()
    best = min((x["ms"] for name, x in found.items() if name.startswith("sdpa")), default=None)
    for x in found.values():
        x["over_sdpa"] = best / x["ms"] if best else None
    return {
        "tokens": tokens,
        "batch": batch,
        "sets": len(case.keys),
        "layers": len(model.model.layers),
        "compiled": "nothing" if arguments.compile == "all" and not compiled else arguments.compile,
        "found": found,
        "missing": missing,
    }


def show(shape, result):
    head = f"{shape}, {result['tokens']:,} tokens, batch {result['batch']}"
    if "why" in result:
        print(f"{head}: {result['why']}")
        return
    shared = f"; K and V of {result['sets']} layers, which the {result['layers']} share"
    print(head + (shared if result["sets"] < result["layers"] else ""))
    print(f"  {'attention':24} {'ms a step':>10} {'range':>17} {'tokens/s':>9} {'over sdpa':>9} {'divergence':>10}")
    for name, x in result["found"].items():
        ratio = f"{x['over_sdpa']:8.2f}x" if x["over_sdpa"] else ""
        print(
            f"  {name:24} {x['ms']:10.3f} {x['range'][0]:8.3f}-{x['range'][1]:8.3f} {x['tokens_per_second']:9.1f} {ratio:>9} "
            f"{x['divergence'] if 'divergence' in x else math.nan:10.5f}"
        )
    for name, why in result["missing"].items():
        print(f"  {name:24} {why}")
    sys.stdout.flush()


def record(arguments):
    """Keys, values and queries of a model that has read a text, for ``model --keys``: of some of its layers."""
    import numpy

    from .bench import read, read_text

    model, ids = read_text(arguments, arguments.tokens + 1)
    queries = {}

    def attend(module, query, *rest, **more):
        queries[module.layer_idx] = query[0, :, -1]
        return AttentionInterface()["sdpa"](module, query, *rest, **more)

    cache, _ = read(model, ids, arguments.tokens, door.cache_parameter(model))
    AttentionInterface.register("record", attend)
    AttentionMaskInterface.register("record", AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation("record")
    with torch.no_grad():
        model(ids[:, arguments.tokens : arguments.tokens + 1], **{door.cache_parameter(model): cache})
    layers = len(cache.layers)
    chosen = [i * layers // arguments.layers for i in range(arguments.layers)]
    numpy.savez(
        arguments.out,
        keys=torch.stack([cache.layers[i].keys[0, :, : arguments.tokens] for i in chosen]).half().numpy(),
        values=torch.stack([cache.layers[i].values[0, :, : arguments.tokens] for i in chosen]).half().numpy(),
        queries=torch.stack([queries[i] for i in chosen]).half().numpy(),
    )
    print(f"{arguments.out}: layers {chosen} of {layers}, {arguments.tokens} tokens")


def model(arguments):
    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            sys.exit("there is no GPU; --device cpu measures without one")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{arguments.dtype}, compiled: {arguments.compile}. \"none\" is the model without attention; over sdpa: over the fastest of")
    print(f"PyTorch's; divergence: of the next token from {arguments.sdpa.split(',')[0]}'s, in nats.\n")
    if arguments.compile == "parts":
        fuse()
    results = []
    for shape in arguments.shape.split(","):
        made = make_model(shape, arguments.layers, dtype, device, arguments.deviation)
        for tokens in map(int, arguments.tokens.split(",")):
            for batch in map(int, arguments.batch.split(",")):
                result = measure(made, tokens, batch, dtype, device, arguments)
                show(shape, result)
                results.append({"shape": shape, **result})
                if arguments.out:
                    of = {name: value for name, value in vars(arguments).items() if name != "run"}
                    with open(arguments.out, "w", encoding="utf-8") as file:
                        json.dump({"arguments": of, "results": results}, file, indent=1)
                clean(device)
        del made
        clean(device)


def clean(device):
    global current
    current = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
