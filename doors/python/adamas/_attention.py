"""Caches of codes, and steps of attention on them, for NumPy's arrays and PyTorch's tensors on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._config import Config
from ._library import check, create, ffi, lib, struct
from ._rows import Pages, integers, rows, whole
from ._stages import Merge, Scores, scores

_DEVICES = {"cpu": "CPU", "reference": "REFERENCE"}


def _device(name: str) -> int:
    if name not in _DEVICES:
        raise ValueError(f"device {name!r}; there are {', '.join(map(repr, _DEVICES))}")
    return getattr(lib, "ADAMAS_DEVICE_" + _DEVICES[name])


class Cache:
    """The codes of one layer's keys, and the means of its values; K and V themselves stay the caller's.

    Args:
        kv_heads, head_dim: of K and V. head_dim is one of ``adamas.head_dims()``.
        capacity: tokens that a sequence may have.
        sequences: independent ones.
        config: ``Config``; those of a plan that works on the cache are the same.
        layer: its index in a model, for the setting ``dense_layers``.
        device: "cpu", or "reference": slow, and the definition.
        origin: sequences begin at this token, a multiple of 64; another cache has what is before it.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        sequences: int = 1,
        config: Config | None = None,
        layer: int = 0,
        device: str = "cpu",
        origin: int = 0,
    ) -> None:
        self.kv_heads, self.head_dim, self.sequences, self.capacity = kv_heads, head_dim, sequences, capacity
        self.config, self.device = config or Config(), device
        params = struct("adamas_cache_params")
        params.layer, params.kv_heads, params.head_dim = layer, kv_heads, head_dim
        params.sequences, params.capacity, params.device, params.origin = sequences, capacity, _device(device), origin
        self._native = create("cache", self.config._native, params)

    def append(
        self,
        sequence: int,
        first: int,
        count: int,
        k: Any,
        v: Any = None,
        pages: Pages | None = None,
        layout: str = "HND",
        first_sequence: int = 0,
    ) -> None:
        """Rows [first, first + count) of a sequence were written to K and V: their blocks are encoded.

        Args:
            k, v: all rows, [sequences, kv_heads, tokens, head_dim], or [pages, kv_heads, page_tokens, head_dim] with
                ``pages``; float32, float16, bfloat16 or float8_e4m3fn. Values may come with a step.
            layout: "HND", or "NHD": tokens before heads.
            first_sequence: which of the cache's sequences the first one of k and v is.
        """
        of = (self.kv_heads, self.head_dim, pages, layout, first_sequence)
        native_k, keep_k = rows(k, "k", *of)
        native_v, keep_v = (ffi.NULL, None) if v is None else rows(v, "v", *of)
        check(lib.adamas_append(self._native, sequence, first, count, native_k, native_v))
        del keep_k, keep_v

    def truncate(self, sequence: int, length: int) -> None:
        """Rows [length, ...) of a sequence are gone."""
        check(lib.adamas_truncate(self._native, sequence, length))

    def clear(self, sequence: int = -1) -> None:
        """Every row of a sequence is gone; of all of them, without one."""
        check(lib.adamas_clear(self._native, sequence))

    def share(self, source: int, target: int, length: int) -> None:
        """Sequence ``target`` becomes the first ``length`` tokens of ``source``; their codes are shared."""
        check(lib.adamas_share(self._native, source, target, length))

    def length(self, sequence: int = 0) -> int:
        """Tokens of a sequence that were appended."""
        tokens = ffi.new("int64_t *")
        check(lib.adamas_length(self._native, sequence, tokens))
        return tokens[0]

    def scores(
        self, q: Any, sequence: int = 0, scale: float | None = None, threads: int | None = None, merge: Merge | None = None
    ) -> Scores:
        """Scores of every token of a sequence from its codes, for one query row; its rows were appended with K.

        Args:
            q: [q_heads, head_dim], float32, float16 or bfloat16; q_heads is a multiple of kv_heads.
            scale: None: 1 / sqrt(head_dim).
            merge: of a context in parts, how they meet: ``adamas.distributed``.

        Returns: ``Scores``. ``adamas.select`` of them and of a fixed budget is what a step reads.
        """
        return scores(self, q, sequence, scale, threads, merge)

    def block_bytes(self, sequence: int, kv_head: int, block: int) -> np.ndarray:
        """What is kept of a block of 64 tokens, uint8, laid out as docs/codes.md says."""
        size = ffi.new("size_t *")
        of = (self._native, sequence, kv_head, block)
        check(lib.adamas_block_bytes(*of, ffi.NULL, 0, size))
        found = np.empty(size[0], np.uint8)
        check(lib.adamas_block_bytes(*of, ffi.cast("void *", found.ctypes.data), len(found), size))
        return found

    @property
    def bytes(self) -> int:
        """Memory of codes, means and lengths when every place is used."""
        count = ffi.new("uint64_t *")
        check(lib.adamas_cache_bytes(self._native, count))
        return count[0]


@dataclass
class Result:
    """What a step gives; tensors when the queries are one."""

    out: Any  #: float32 [batch, rows, q_heads, head_dim]
    lse: Any  #: float32 [batch, rows, q_heads]: log-sum-exp of the scores, natural log
    mass: Any  #: float32 [batch, rows, q_heads]: share of the softmax in the tokens that were read, estimated; NaN: not
    noise: Any  #: float32 [batch, rows, q_heads]: variance of the estimated scores
    stats: dict[str, float]  #: counts: adamas_step_stats of the C header


class Plan:
    """Steps of one shape, and the memory that they work in.

    Args:
        q_heads, kv_heads, head_dim: kv_heads divides q_heads.
        max_tokens: the longest context of a step.
        config: that of the caches.
        threads: that work on a step; None: one for each processor.
    """

    def __init__(
        self,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        max_tokens: int,
        config: Config | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.q_heads, self.kv_heads, self.head_dim = q_heads, kv_heads, head_dim
        self.config, self.threads = config or Config(), threads or len(os.sched_getaffinity(0))
        params = struct("adamas_plan_params")
        params.q_heads, params.kv_heads, params.head_dim = q_heads, kv_heads, head_dim
        params.max_tokens, params.max_threads, params.device = max_tokens, self.threads, _device(device)
        self._native = create("plan", self.config._native, params)

    def step(
        self,
        cache: Cache,
        q: Any,
        k: Any,
        v: Any,
        lengths: Iterable[int] | None = None,
        sequences: Iterable[int] | None = None,
        causal: bool = True,
        scale: float | None = None,
        softcap: float = 0.0,
        mask: Any = None,
        slopes: Any = None,
        sink_logits: Any = None,
        pages: Pages | None = None,
        layout: str = "HND",
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        first_sequence: int = 0,
    ) -> Result:
        """Attention of ``rows`` query rows of each of ``batch`` sequences:
        ``softmax(softcap(scale q k) + slope mask) v``, over the tokens that a row sees and the policy selects, the others
        counted through their blocks' means where the budget is automatic.

        Args:
            cache: of the same settings, kv_heads and head_dim.
            q: [batch, rows, q_heads, head_dim], float32, float16 or bfloat16.
            k, v: as for ``Cache.append``.
            lengths: [batch] tokens in view; None: as many as were appended.
            sequences: [batch] which ones; None: 0, 1, 2, ...
            causal: row r of a sequence sees tokens [0, length - rows + r].
            scale: None: 1 / sqrt(head_dim).
            softcap: softcap tanh(x / softcap) of the scores; 0: none.
            mask: [batch, rows, tokens], added to the scores; -inf hides a token.
            slopes: [q_heads] ALiBi.
            sink_logits: [q_heads] one more logit of the softmax, with value 0.
            k_scale, v_scale: what K's and V's elements are multiplied by.
            first_sequence: as for ``Cache.append``.

        Returns: ``Result``.
        """
        q = whole(q, "q", (None, None, self.q_heads, self.head_dim))
        batch, count = q.shape[:2]
        p = struct("adamas_step_params")
        p.threads, p.batch, p.rows, p.causal = self.threads, batch, count, causal
        p.q, p.q_dtype = q.pointer, q.dtype
        p.q_stride_batch, p.q_stride_row, p.q_stride_head = q.strides[:3]
        of = (self.kv_heads, self.head_dim, pages, layout, first_sequence)
        native_k, keep_k = rows(k, "k", *of)
        native_v, keep_v = rows(v, "v", *of)
        p.k, p.v = native_k[0], native_v[0]
        p.sequences, keep_sequences = integers(sequences, "sequences", batch)
        p.lengths, keep_lengths = integers(lengths, "lengths", batch)
        p.scale, p.softcap = scale or 0.0, softcap
        p.k_scale, p.v_scale = k_scale, v_scale
        keep = []
        if mask is not None:
            mask = whole(mask, "mask", (batch, count, None))
            p.mask, p.mask_dtype = mask.pointer, mask.dtype
            p.mask_stride_batch, p.mask_stride_row = mask.strides[:2]
        for name, values in (("slopes", slopes), ("sink_logits", sink_logits)):
            if values is not None:
                view = whole(values, name, (self.q_heads,))
                if view.dtype != lib.ADAMAS_F32:
                    raise TypeError(f"{name}: elements are {view.dtype_name}; they have to be float32")
                setattr(p, name, ffi.cast("float *", view.address))
                keep.append(view)
        out, p.out = q.empty(batch, count, self.q_heads, self.head_dim)
        p.out_stride_head = self.head_dim * 4
        p.out_stride_row = self.q_heads * p.out_stride_head
        p.out_stride_batch = count * p.out_stride_row
        found = {}
        for name in ("lse", "mass", "noise"):
            found[name], pointer = q.empty(batch, count, self.q_heads)
            setattr(p, name, pointer)
        stats = struct("adamas_step_stats")
        p.stats = stats
        check(lib.adamas_step(self._native, cache._native, p))
        del keep_k, keep_v, keep_sequences, keep_lengths, keep
        names = [name for name, _ in ffi.typeof("adamas_step_stats").fields if name != "struct_size"]
        return Result(out, **found, stats={name: getattr(stats, name) for name in names})

    def selection(self, q_head: int) -> np.ndarray:
        """The tokens that the last step attended to for its last sequence and row, ascending: int64 [tokens]."""
        count = ffi.new("int64_t *")
        lib.adamas_selection(self._native, q_head, ffi.NULL, 0, count)
        tokens = np.empty(count[0], np.int64)
        check(lib.adamas_selection(self._native, q_head, ffi.cast("int64_t *", tokens.ctypes.data), len(tokens), count))
        return tokens
