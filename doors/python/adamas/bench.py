"""``python -m adamas.bench``: tokens a second of models of transformers, with PyTorch's attention and through the library.

``decode`` reads a text with a model of yours and decodes it further. ``model`` decodes with random weights of well-known shapes
on a GPU, as CUDA graphs; ``record`` writes a real model's keys and queries for it. ``distributed`` has steps of a context that is
sharded over processes.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

PIECE = 1024  # rows of a prompt that are read at a time


def _add_model(parser):
    parser.add_argument("model", help="a folder or a name, as from_pretrained takes it")
    parser.add_argument("--gguf", help="a file of that folder in the format GGUF")
    parser.add_argument("--text", type=Path, help="what is read; without it random tokens, whose attention is like no text's")
    parser.add_argument("--dtype", default="float32", help="of the model (%(default)s)")
    parser.add_argument("--threads", type=int, help="of PyTorch and of the library")


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m adamas.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of = commands.add_parser(
        "decode",
        help="decoding after contexts of several lengths",
        description="Reads a text once for each length, and decodes it further: with transformers' own attention (sdpa), with the same on "
        "buffers that are not copied for every token, and through the library. The divergence is that of the next token's "
        "distribution from sdpa's, in nats, over the decoded tokens.",
    )
    _add_model(of)
    of.add_argument("--tokens", default="8192", help="lengths: 8192,16384 (%(default)s)")
    of.add_argument("--steps", type=int, default=32, help="tokens decoded at each (%(default)s)")
    of.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting: budget=128; may be repeated")
    of.add_argument("--json", action="store_true", help="print JSON")
    of.set_defaults(run=decode)

    from . import _bench_model

    of = commands.add_parser("model", help="whole models of well-known shapes, on a GPU", description=_bench_model.__doc__)
    _bench_model.add_arguments(of)
    of.set_defaults(run=_bench_model.model)

    of = commands.add_parser("record", help="keys, values and queries of a real model, for `model --keys`")
    _add_model(of)
    of.add_argument("--tokens", type=int, default=8192, help="that are read (%(default)s)")
    of.add_argument("--layers", type=int, default=4, help="of the model, evenly spread (%(default)s)")
    of.add_argument("--out", default="keys.npz", help="the file (%(default)s)")
    of.set_defaults(run=_bench_model.record)

    of = commands.add_parser(
        "distributed",
        help="steps of a context sharded over processes",
        description="One layer's context of random keys and values, sharded over processes of this machine (gloo), one thread each; "
        "rank 0's medians, and in brackets the least, which another program's work on the machine touches less. The messages alone are those "
        "of a step sent again with nothing between them; work is the rank's processor time.",
    )
    of.add_argument("--ranks", default="1,2,4", help="how many processes (%(default)s)")
    of.add_argument("--tokens", default="131072", help="of all ranks together: 131072,1048576 (%(default)s)")
    of.add_argument("--q-heads", type=int, default=32)
    of.add_argument("--kv-heads", type=int, default=8)
    of.add_argument("--head-dim", type=int, default=128)
    of.add_argument("--budget", default="256,auto", help="tokens a query head reads, or auto (%(default)s)")
    of.add_argument("--steps", type=int, default=12)
    of.add_argument("--json", action="store_true", help="print JSON")
    of.set_defaults(run=distribute)
    return parser.parse_args()


def read_text(arguments, wanted):
    """The model, and the first tokens of the text: int64 [1, wanted]; and how from_pretrained was called."""
    import torch
    import transformers

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    source = {"gguf_file": arguments.gguf} if arguments.gguf else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype), attn_implementation="sdpa", **source
    ).eval()
    if arguments.text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model, **source)
        ids = tokenizer(arguments.text.read_text(encoding="utf-8")[: 8 * wanted], return_tensors="pt").input_ids
    else:
        ids = torch.randint(model.config.vocab_size, (1, wanted), generator=torch.Generator().manual_seed(0))
    if ids.shape[1] < wanted:
        sys.exit(f"{arguments.text} has {ids.shape[1]} tokens; {wanted} are wanted")
    return model, ids


def read(model, ids, tokens, name):
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
    from . import transformers as door

    lengths = [int(n) for n in arguments.tokens.split(",")]
    model, ids = read_text(arguments, max(lengths) + arguments.steps)
    settings = dict(one.split("=", 1) for one in arguments.set)
    name = door.cache_parameter(model)

    rows = []
    for tokens in lengths:
        cache, reading = read(model, ids, tokens, name)
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


def _steps_of_a_rank(rank, ranks, store, arguments, tokens, budget, found):
    """Steps of a shard; the figures of rank 0 to the queue."""
    import torch
    import torch.distributed as dist

    from . import Config
    from .distributed import Shard, split

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    heads, dim = (arguments.q_heads, arguments.kv_heads), arguments.head_dim
    first, count = split(tokens, ranks)[rank]
    random = torch.Generator().manual_seed(rank)
    k, v = (torch.randn(1, heads[1], max(1, count), dim, generator=random).half() for _ in range(2))
    shard = Shard(*heads, dim, first, count, Config(budget=budget), threads=1, timeout=600)
    shard.append(count, k, v)
    group, sizes = shard.group, []
    queries = torch.randn(arguments.steps + 2, heads[0], dim, generator=torch.Generator().manual_seed(0))
    wall, work = [], []
    for q in queries:
        dist.barrier()
        group.messages.clear(), group.bytes.clear()
        started, worked = time.perf_counter(), time.thread_time()
        shard.step(q, k, v)
        wall.append(time.perf_counter() - started)
        work.append(time.thread_time() - worked)
        sizes = [(kind, group.bytes[kind] // group.messages[kind] // 8) for kind in group.messages for _ in range(group.messages[kind])]
    sent, messages = dict(group.bytes), sum(group.messages.values())
    alone = []
    for _ in range(50):
        dist.barrier()
        before = group.seconds
        for kind, numbers in sizes:
            values = torch.zeros(max(1, numbers), dtype=torch.float64)
            group.gather(values) if kind == "gather" else group.reduce(kind, values)
        alone.append(group.seconds - before)
    # The first steps touch memory for the first time.
    if rank == 0:
        found.put(
            {
                "seconds": statistics.median(wall[2:]),
                "least_seconds": min(wall[2:]),
                "work": statistics.median(work[2:]),
                "messages_alone": statistics.median(alone[5:]),
                "least_messages_alone": min(alone[5:]),
                "messages": messages,
                "bytes": sent,
            }
        )
    dist.barrier()
    dist.destroy_process_group()


def distribute(arguments):
    import torch.multiprocessing as processes

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = processes.get_context("spawn")
    rows = []
    for tokens in map(int, arguments.tokens.split(",")):
        for budget in arguments.budget.split(","):
            for ranks in map(int, arguments.ranks.split(",")):
                print(f"\r{tokens} tokens, {budget}, {ranks} ranks", end="", file=sys.stderr, flush=True)
                found = context.SimpleQueue()
                with tempfile.TemporaryDirectory() as folder:
                    of = (ranks, f"{folder}/store", arguments, tokens, budget, found)
                    processes.start_processes(_steps_of_a_rank, of, nprocs=ranks, start_method="spawn")
                rows.append({"tokens": tokens, "budget": budget, "ranks": ranks, **found.get()})
    print(file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("   tokens  budget  ranks  ms a step (least)  work  messages alone (least)  messages  KiB of a rank: max     sum  gather")
    for row in rows:
        ms = {name: 1000 * value for name, value in row.items() if isinstance(value, float)}
        kinds = "  ".join(f"{row['bytes'].get(kind, 0) / 1024:6.1f}" for kind in ("max", "sum", "gather"))
        print(
            f"{row['tokens']:9}  {row['budget']:>6}  {row['ranks']:5}  {ms['seconds']:8.2f} {'(%.2f)' % ms['least_seconds']:>8}  {ms['work']:4.1f}  "
            f"{ms['messages_alone']:13.2f} {'(%.2f)' % ms['least_messages_alone']:>8}  {row['messages']:8}  {' ' * 12}{kinds}"
        )


if __name__ == "__main__":
    arguments = _arguments()
    arguments.run(arguments)
