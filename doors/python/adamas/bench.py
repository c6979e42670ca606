"""``python -m adamas.bench decode``: tokens a second of a model of transformers, with its own attention and through the library."""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

PIECE = 1024  # rows of a prompt that are read at a time


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m adamas.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    decode = commands.add_parser(
        "decode",
        help="decoding after contexts of several lengths",
        description="Reads a text once for each length, and decodes it further: with transformers' own attention (sdpa), with the same on "
        "buffers that are not copied for every token, and through the library. The divergence is that of the next token's "
        "distribution from sdpa's, in nats, over the decoded tokens.",
    )
    decode.add_argument("model", help="a folder or a name, as from_pretrained takes it")
    decode.add_argument("--gguf", help="a file of that folder in the format GGUF")
    decode.add_argument("--text", type=Path, help="what is read; without it random tokens, whose attention is like no text's")
    decode.add_argument("--tokens", default="8192", help="lengths: 8192,16384 (%(default)s)")
    decode.add_argument("--steps", type=int, default=32, help="tokens decoded at each (%(default)s)")
    decode.add_argument("--dtype", default="float32", help="of the model (%(default)s)")
    decode.add_argument("--threads", type=int, help="of PyTorch and of the library")
    decode.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting: budget=128; may be repeated")
    decode.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def _read(model, ids, tokens, name):
    import torch
    import transformers

    cache = transformers.DynamicCache(config=model.config)
    started = time.perf_counter()
    with torch.no_grad():
        for first in range(0, tokens, PIECE):
            model(ids[:, first : min(tokens, first + PIECE)], logits_to_keep=1, **{name: cache})
            print(f"\rreading {tokens} tokens: {min(tokens, first + PIECE)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return cache, time.perf_counter() - started


def _decode(model, ids, cache, tokens, steps, name):
    import torch

    seconds, logits = [], []
    with torch.no_grad():
        for at in range(tokens, tokens + steps):
            started = time.perf_counter()
            out = model(ids[:, at : at + 1], **{name: cache})
            seconds.append(time.perf_counter() - started)
            logits.append(out.logits[0, -1].float())
    # The first ones make buffers and codes.
    return {"seconds": statistics.median(seconds[2:]), "first": seconds[0], "logits": torch.stack(logits).log_softmax(-1)}


def decode(arguments):
    import torch
    import transformers

    from . import transformers as door

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    source = {"gguf_file": arguments.gguf} if arguments.gguf else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype), attn_implementation="sdpa", **source
    ).eval()
    lengths = [int(n) for n in arguments.tokens.split(",")]
    wanted = max(lengths) + arguments.steps
    if arguments.text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model, **source)
        ids = tokenizer(arguments.text.read_text(encoding="utf-8")[: 8 * wanted], return_tensors="pt").input_ids
    else:
        ids = torch.randint(model.config.vocab_size, (1, wanted), generator=torch.Generator().manual_seed(0))
    if ids.shape[1] < wanted:
        sys.exit(f"{arguments.text} has {ids.shape[1]} tokens; {wanted} are wanted")
    settings = dict(one.split("=", 1) for one in arguments.set)
    name = door.cache_parameter(model)

    rows = []
    for tokens in lengths:
        cache, reading = _read(model, ids, tokens, name)
        cases = {}
        for case in ("sdpa", "sdpa, buffers", "adamas full", "adamas"):
            own = copy.deepcopy(cache)
            if case == "sdpa":
                cases[case] = _decode(model, ids, own, tokens, arguments.steps, name)
                continue
            with door.enable(model, **({"policy": "full"} if case == "adamas full" else settings)) as enabled:
                if case == "sdpa, buffers":
                    model.set_attn_implementation("sdpa")
                cases[case] = _decode(model, ids, own, tokens, arguments.steps, name)
                cases[case]["stats"] = dict(enabled.stats)
        exact = cases["sdpa"]["logits"]
        for case, found in cases.items():
            logits = found.pop("logits")
            found["divergence"] = (exact.exp() * (exact - logits)).sum(-1).mean().item()
            found["over_sdpa"] = cases["sdpa"]["seconds"] / found["seconds"]
        rows.append({"tokens": tokens, "prompt_seconds": reading, "cases": cases})
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("tokens  attention       ms a token  over sdpa  first ms  divergence")
    for row in rows:
        for case, found in row["cases"].items():
            print(
                f"{row['tokens']:6}  {case:14}  {1000 * found['seconds']:10.1f}  {found['over_sdpa']:8.2f}x  "
                f"{1000 * found['first']:8.1f}  {found['divergence']:10.5f}"
            )


if __name__ == "__main__":
    decode(_arguments())
