"""A context that is sharded over the ranks of a process group of torch.distributed: each has some of the tokens, with their codes.

Ranks hold the tokens in their order: the first rank the first ones, and so on. A step is a call of every rank with the same
queries, and gives every rank the same output. docs/scale.md has its messages, and what they cost.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ._attention import Cache, Plan
from ._config import Config
from ._stages import attend, select

BLOCK = 64  # tokens that are encoded together: no block lies on two ranks


def split(tokens: int, ranks: int) -> list[tuple[int, int]]:
    """Tokens of a context, as evenly as blocks of 64 allow: (the first one, how many) of every rank.

    >>> split(1000, 3)
    [(0, 384), (384, 320), (704, 296)]
    """
    blocks = -(-tokens // BLOCK)
    starts = [BLOCK * (blocks // ranks * r + min(r, blocks % ranks)) for r in range(ranks)] + [tokens]
    return [(first, end - first) for first, end in zip(starts, starts[1:])]


@dataclass
class ShardResult:
    """What a step gives: the same on every rank, but for ``tokens``."""

    out: torch.Tensor  #: float32 [q_heads, head_dim]
    lse: torch.Tensor  #: float32 [q_heads]
    tokens: list[np.ndarray] | None  #: with a fixed budget: those of this rank that a head read, of the whole context; int64


class Group:
    """Messages of this rank to the others, with a time limit: a rank that does not answer is an error."""

    def __init__(self, group: Any, timeout: float) -> None:
        self.group, self.timeout = group, timedelta(seconds=timeout)
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is none of the group's")
        self.messages: Counter[str] = Counter()  #: how many there were
        self.bytes: Counter[str] = Counter()  #: of this rank's own numbers in them
        self.seconds = 0.0  #: in messages, the wait for slower ranks included

    def _send(self, kind: str, tensor: torch.Tensor, call: Callable[..., Any], *arguments: Any) -> None:
        self.messages[kind] += 1
        self.bytes[kind] += tensor.numel() * tensor.element_size()
        started = time.perf_counter()
        call(*arguments, group=self.group, async_op=True).wait(self.timeout)
        self.seconds += time.perf_counter() - started

    def reduce(self, kind: str, tensor: torch.Tensor) -> None:
        """All ranks' "max" or "sum", in place."""
        self._send(kind, tensor, dist.all_reduce, tensor, {"max": dist.ReduceOp.MAX, "sum": dist.ReduceOp.SUM}[kind])

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's, in their order."""
        found = [torch.empty_like(tensor) for _ in range(self.ranks)]
        self._send("gather", tensor, dist.all_gather, found, tensor)
        return found

    def merge(self, op: str, values: np.ndarray) -> None:
        """What the library's stages ask for."""
        tensor = torch.from_numpy(values)
        if op == "behind":
            values[:] = sum((x.numpy() for x in self.gather(tensor)[self.rank + 1 :]), np.zeros_like(values))
        else:
            self.reduce(op, tensor)


class Shard:
    """One rank's tokens of a context, of one layer. Made by every rank of the group at once.

    Args:
        q_heads, kv_heads, head_dim: as for ``Plan`` and ``Cache``, the same on every rank.
        origin: the first token that this rank has, a multiple of 64. Ranks have the tokens in their order, without a gap; the
            last one that has any grows. ``split`` shares a context evenly.
        capacity: tokens that it may have; 0: none.
        config: policy ``adamas``, or ``full``; the same on every rank.
        layer: its index in a model, for the setting ``dense_layers``.
        group: a process group for tensors on a CPU (gloo); None: the default one.
        threads: of this rank; None: one for each processor.
        timeout: seconds after which a rank that does not answer is an error.
    """

    def __init__(
        self,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        origin: int,
        capacity: int,
        config: Config | None = None,
        layer: int = 0,
        group: Any = None,
        threads: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.config, self.origin, self.capacity = config or Config(), origin, capacity
        self.group = Group(group, timeout)
        self._check_config()
        self._check_ranks([origin, capacity, q_heads, kv_heads, head_dim, layer, zlib.crc32(repr(self.config).encode())])
        room = max(1, capacity)
        self.cache = Cache(kv_heads, head_dim, room, config=self.config, layer=layer, origin=origin)
        self.plan = Plan(q_heads, kv_heads, head_dim, room, self.config, threads)
        dense = self.config.policy == "full" or layer < int(self.config.dense_layers)
        self._selects = not dense and self.config.budget != "auto"  #: tokens of all ranks, by their scores

    def _check_config(self) -> None:
        if self.config.policy not in ("adamas", "full"):
            raise ValueError(f"policy {self.config.policy!r}; a sharded context has 'adamas' and 'full'")
        if float(self.config.min_mass) > 0:
            raise ValueError(f"min_mass {self.config.min_mass}; in a sharded context it is 0")

    def _check_ranks(self, mine: list[int]) -> None:
        """Every rank says the same, or all of them raise."""
        all_ranks = [x.tolist() for x in self.group.gather(torch.tensor(mine, dtype=torch.int64))]
        end = 0
        for rank, (origin, capacity, *others) in enumerate(all_ranks):
            if others != all_ranks[0][2:]:
                raise ValueError(f"rank {rank} has other heads, another layer or other settings than rank 0")
            if origin < 0 or origin % BLOCK != 0 or capacity < 0:
                raise ValueError(f"rank {rank}: origin {origin}, capacity {capacity}; an origin is a multiple of {BLOCK}")
            if capacity > 0 and origin < end:
                raise ValueError(f"rank {rank}: origin {origin}, and the ranks before it have the tokens up to {end}")
            end = max(end, origin + capacity)

    def append(self, count: int, k: Any, v: Any) -> None:
        """The next ``count`` rows were written to K and V: their codes are made. A matter of this rank alone.

        Args:
            k, v: this rank's rows, [1, kv_heads, tokens, head_dim].
        """
        self.cache.append(0, len(self), count, k, v)

    def __len__(self) -> int:
        """Tokens that this rank has."""
        return self.cache.length()

    def step(self, q: Any, k: Any, v: Any, scale: float | None = None) -> ShardResult:
        """Attention of one query row over the tokens of all ranks. Every rank calls it, with the same queries.

        Args:
            q: [q_heads, head_dim], float32, float16 or bfloat16.
            k, v: this rank's rows, [1, kv_heads, tokens, head_dim]; they may be empty.
            scale: None: 1 / sqrt(head_dim).

        Returns: ``ShardResult``. Raises an error of torch.distributed when a rank does not answer.
        """
        if not self._selects:
            return ShardResult(*self._merged(*self._step(q, k, v, scale)), None)
        tokens = self._select(q, scale)
        out, lse = attend(q, k, v, tokens, len(self), scale=scale, threads=self.plan.threads)
        merged = self._merged(torch.as_tensor(out), torch.as_tensor(lse))
        return ShardResult(*merged, [one + self.origin for one in tokens])

    def _select(self, q: Any, scale: float | None) -> list[np.ndarray]:
        """With a fixed budget, this rank's part of the top of all tokens. As in a step of one process, a short context is read
        whole, and so it is by a head whose estimates are too noisy."""
        scores = self.cache.scores(q, scale=scale, threads=self.plan.threads, merge=self.group.merge)
        budget = int(self.config.budget)
        tokens = select(scores.scores, budget, self.group.merge)
        most, every = float(self.config.max_noise), np.arange(len(self))
        whole = scores.tokens <= budget or scores.tokens < int(self.config.min_context)
        return [every if whole or 0 < most < noise else one for one, noise in zip(tokens, scores.noise)]

    def _step(self, q: Any, k: Any, v: Any, scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        """A step over this rank's tokens alone: a list and a rest of its own, or all of them."""
        if len(self) == 0:
            return torch.zeros(q.shape), torch.full(q.shape[:1], -torch.inf)
        result = self.plan.step(self.cache, q[None, None], k, v, [len(self)], scale=scale)
        return torch.as_tensor(result.out)[0, 0], torch.as_tensor(result.lse)[0, 0]

    def _merged(self, out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The softmax over all ranks' tokens, of those over each rank's."""
        top = lse.clone()
        self.group.reduce("max", top)
        weights = torch.where(top == -torch.inf, 0.0, torch.exp(lse - top))[:, None]
        sums = torch.cat([weights * out, weights], dim=1)
        self.group.reduce("sum", sums)
        total = sums[:, -1:]
        return torch.where(total == 0, 0.0, sums[:, :-1] / total), top + torch.log(total[:, 0])

