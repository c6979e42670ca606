"""One layer's context over several processes: each has a slice of the tokens, with their codes, and all give one answer.

    torchrun --nproc-per-node 3 examples/python/sharded_context.py --tokens 20000

A fact is hidden in random keys and values: one token whose key the queries look for. Every rank reads its part of the exact top 128 of
all tokens, and the outputs are merged by their log-sum-exp. New tokens go to the last rank.
"""

import argparse

import adamas
import torch
import torch.distributed as dist
from adamas.distributed import Shard, split

Q_HEADS, KV_HEADS, HEAD_DIM, NEW = 8, 2, 64, 20

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--tokens", type=int, default=20000)
parser.add_argument("--budget", type=int, default=128)
arguments = parser.parse_args()

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
first, count = split(arguments.tokens, ranks)[rank]
room = count + NEW if rank == ranks - 1 else count

random = torch.Generator().manual_seed(rank)  # each rank makes its own rows
k, v = (torch.randn(1, KV_HEADS, max(1, room), HEAD_DIM, generator=random) for _ in range(2))
q = 3 * torch.randn(Q_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1000))  # the same on every rank
fact = arguments.tokens // 3
if first <= fact < first + count:
    k[0, :, fact - first] = q.reshape(KV_HEADS, -1, HEAD_DIM).mean(1)
    v[0, :, fact - first] = 100.0

shard = Shard(Q_HEADS, KV_HEADS, HEAD_DIM, first, room, adamas.Config(budget=arguments.budget), threads=1)
shard.append(count, k[:, :, :count], v[:, :, :count])
for new in range(NEW):
    if rank == ranks - 1:  # K and V have the new row already
        shard.append(1, k[:, :, : count + new + 1], v[:, :, : count + new + 1])
    result = shard.step(q, k, v)

exact = Shard(Q_HEADS, KV_HEADS, HEAD_DIM, first, room, adamas.Config(policy="full"), threads=1)
exact.append(len(shard), k, v)
difference = (exact.step(q, k, v).out - result.out).norm() / result.out.norm()
reads = sum(len(tokens) for tokens in result.tokens) / Q_HEADS
sent = sum(shard.group.bytes.values()) / (NEW * 1024)
print(
    f"rank {rank} of {ranks}: tokens {first} to {first + len(shard)}, a head reads {reads:.0f} of them, "
    f"{'with' if any(fact in tokens for tokens in result.tokens) else 'without'} the fact; out {result.out[0, 0]:.3f}, "
    f"{100 * difference:.2f}% from full attention's; {sent:.0f} KiB of messages a step",
    flush=True,
)
dist.barrier()
dist.destroy_process_group()
