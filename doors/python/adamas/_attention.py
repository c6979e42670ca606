"""Caches of codes, and steps of attention on them, for NumPy's arrays and PyTorch's tensors, on a CPU or a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._config import Config
from ._device import Device
from ._library import check, create, ffi, lib, struct
from ._rows import Pages, integers, rows_of, whole
from ._stages import Merge, Scores, scores

_STATS = [name for name, _ in ffi.typeof("adamas_step_stats").fields if name != "struct_size"]
_KINDS = ("lse", "mass", "noise")  # of what a step gives beside its output


class Cache:
    """The codes of one layer's keys, and the means of its values; K and V themselves stay the caller's.

    Args:
        kv_heads, head_dim: of K and V. head_dim is one of ``adamas.head_dims()``.
        capacity: tokens that a sequence may have.
        sequences: independent ones.
        config: ``Config``; those of a plan that works on the cache are the same.
        layer: its index in a model, for the setting ``dense_layers``.
        device: "cpu"; "cuda" or "cuda:1", where every array of a call is a tensor of that GPU; or "reference": slow, and the
            definition.
        by_page: codes lie by the pages of K, of which there are ``pages``, and go where the page tables go: shared pages have
            their codes once. page_tokens is a multiple of 64 then. Without it codes are the sequences'.
        pages, page_tokens: of K, with ``by_page``.
        origin: sequences begin at this token, a multiple of 64; another cache has what is before it. Not on a GPU.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        sequences: int = 1,
        config: Config | None = None,
        layer: int = 0,
        device: Any = "cpu",
        by_page: bool = False,
        pages: int = 0,
        page_tokens: int = 64,
        origin: int = 0,
    ) -> None:
        self.kv_heads, self.head_dim, self.sequences, self.capacity = kv_heads, head_dim, sequences, capacity
        self.config, self.device = config or Config(), Device(device)
        params = struct("adamas_cache_params")
        params.layer, params.kv_heads, params.head_dim = layer, kv_heads, head_dim
        params.sequences, params.capacity, params.device = sequences, capacity, self.device.number
        params.origin = origin
        if by_page:
            params.by_page, params.blocks = 1, pages * page_tokens // lib.ADAMAS_BLOCK_TOKENS
        with self.device.current():
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
                ``pages``; float32, float16, bfloat16 or float8_e4m3fn. Values may come with a step, but on a GPU.
            layout: "HND", or "NHD": tokens before heads.
            first_sequence: which of the cache's sequences the first one of k and v is.
        """
        native_k, native_v, keep = self._rows(k, v, pages, layout, first_sequence)
        with self.device.in_order():
            check(lib.adamas_append(self._native, sequence, first, count, native_k, native_v))
        del keep

    def append_rows(
        self,
        k: Any,
        v: Any,
        lengths: Any,
        rows: int = 1,
        sequences: Any = None,
        pages: Pages | None = None,
        layout: str = "HND",
        first_sequence: int = 0,
    ) -> None:
        """The newest rows of several sequences were written, as a decoding step writes them: of each the last ``rows``, or as
        many as there are; the sequence ends with them. On a GPU the call works in the current stream, reads tensors when it
        runs, and may be captured in a graph.

        Args:
            k, v: as for ``append``.
            lengths: [batch] tokens, these rows included; a tensor of int64 is read where it lies.
            sequences: [batch] which ones; None: 0, 1, 2, ...
        """
        params = struct("adamas_append_params")
        native_k, native_v, keep = self._rows(k, v, pages, layout, first_sequence)
        params.k = native_k[0]
        if v is not None:
            params.v = native_v[0]
        params.lengths, keep_lengths = integers(lengths, "lengths", None, self.device)
        params.batch, params.rows = len(keep_lengths), rows
        params.sequences, keep_sequences = integers(sequences, "sequences", params.batch, self.device)
        with self.device.current():
            params.stream = self.device.stream()
            check(lib.adamas_append_rows(self._native, params))
        del keep, keep_lengths, keep_sequences

    def _rows(self, k: Any, v: Any, pages: Pages | None, layout: str, first_sequence: int) -> tuple[Any, Any, Any]:
        of = (self.kv_heads, self.head_dim, self.device, pages, layout, first_sequence)
        native_k, keep_k = rows_of(k, "k", *of)
        native_v, keep_v = (ffi.NULL, None) if v is None else rows_of(v, "v", *of)
        return native_k, native_v, (keep_k, keep_v)

    def truncate(self, sequence: int, length: int) -> None:
        """Rows [length, ...) of a sequence are gone."""
        with self.device.in_order():
            check(lib.adamas_truncate(self._native, sequence, length))

    def clear(self, sequence: int = -1) -> None:
        """Every row of a sequence is gone; of all of them, without one."""
        with self.device.in_order():
            check(lib.adamas_clear(self._native, sequence))

    def share(self, source: int, target: int, length: int) -> None:
        """Sequence ``target`` becomes the first ``length`` tokens of ``source``; their codes are shared, on a GPU copied."""
        with self.device.in_order():
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
    lse: Any = None  #: float32 [batch, rows, q_heads]: log-sum-exp of the scores, natural log
    mass: Any = None  #: float32 [batch, rows, q_heads]: share of the softmax in the tokens that were read, estimated; NaN: not
    noise: Any = None  #: float32 [batch, rows, q_heads]: variance of the estimated scores
    stats: dict[str, float] = field(default_factory=dict)  #: counts: adamas_step_stats of the C header; a GPU's: ``Plan.counts``


class Plan:
    """Steps of one shape, and the memory that they work in.

    Args:
        q_heads, kv_heads, head_dim: kv_heads divides q_heads.
        max_tokens: the longest context of a step.
        config: that of the caches.
        threads: that work on a step; None: one for each processor.
        device: that of the caches.
        max_rows: on a GPU: query rows of a step, of all its sequences.
        workspace: on a GPU: a tensor of uint8 there, of ``workspace_bytes``, that steps work in; None: one of the plan's own.
            Plans whose steps follow each other in a stream may share one.

    On a GPU steps are counted with the setting ``stats``: that takes two small kernels a step, and a graph counts its replays.
    """

    def __init__(
        self,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        max_tokens: int,
        config: Config | None = None,
        threads: int | None = None,
        device: Any = "cpu",
        max_rows: int = 1,
        workspace: Any = None,
    ) -> None:
        self.q_heads, self.kv_heads, self.head_dim = q_heads, kv_heads, head_dim
        self.config, self.threads = config or Config(), threads or len(os.sched_getaffinity(0))
        params = struct("adamas_plan_params")
        params.q_heads, params.kv_heads, params.head_dim = q_heads, kv_heads, head_dim
        self.device, self.max_tokens, self.max_rows = Device(device), max_tokens, max_rows
        self._counts: dict[str, float] = {"rows": 0}  # query rows, and the sums of Result.stats
        params.max_tokens, params.max_threads, params.device = max_tokens, self.threads, self.device.number
        params.max_rows = max_rows
        self._native = create("plan", self.config._native, params)
        self.workspace = workspace
        if self.device.is_gpu and workspace is None:
            import torch

            self.workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=self.device.name)
        self._counted: Any = None  # adamas_step_stats on the GPU
        if self.device.is_gpu and self.config._native.stats != 0:
            import torch

            empty = struct("adamas_step_stats")
            self._counted = torch.frombuffer(bytearray(ffi.buffer(empty)), dtype=torch.uint8).to(self.device.name)

    @property
    def counts(self) -> dict[str, float]:
        """Of all steps: query rows, and the sums of ``Result.stats``. On a GPU it waits for them, and has the query rows alone
        without the setting ``stats``; those that a graph replays are in the other sums."""
        if self._counted is None:
            return dict(self._counts)
        import torch

        torch.cuda.synchronize(self.device.name)
        found = struct("adamas_step_stats")
        ffi.memmove(found, self._counted.cpu().numpy().tobytes(), ffi.sizeof("adamas_step_stats"))
        return self._counts | {name: getattr(found, name) for name in _STATS}

    @property
    def workspace_bytes(self) -> int:
        """Memory of the GPU that a step works in; 0 on a CPU."""
        count = ffi.new("size_t *")
        check(lib.adamas_plan_workspace(self._native, count))
        return count[0]

    def step(
        self,
        cache: Cache,
        q: Any,
        k: Any,
        v: Any,
        lengths: Any = None,
        sequences: Any = None,
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
        wanted: Iterable[str] = _KINDS,
    ) -> Result:
        """Attention of ``rows`` query rows of each of ``batch`` sequences:
        ``softmax(softcap(scale q k) + slope mask) v``, over the tokens that a row sees and the policy selects, the others
        counted through their blocks' means where the budget is automatic.

        Args:
            cache: of the same settings, kv_heads and head_dim.
            q: [batch, rows, q_heads, head_dim], float32, float16 or bfloat16.
            k, v: as for ``Cache.append``.
            lengths: [batch] tokens in view; None: as many as were appended. A tensor of int64 is read where it lies.
            sequences: [batch] which ones; None: 0, 1, 2, ...
            causal: row r of a sequence sees tokens [0, length - rows + r].
            scale: None: 1 / sqrt(head_dim).
            softcap: softcap tanh(x / softcap) of the scores; 0: none.
            mask: [batch, rows, tokens], added to the scores; -inf hides a token.
            slopes: [q_heads] ALiBi.
            sink_logits: [q_heads] one more logit of the softmax, with value 0.
            k_scale, v_scale: what K's and V's elements are multiplied by.
            first_sequence: as for ``Cache.append``.
            wanted: of lse, mass and noise.

        On a GPU the call works in the current stream, allocates nothing but what it returns, and may be captured in a graph
        that is replayed while lengths, tables and masks change.

        Returns: ``Result``.
        """
        q = whole(q, "q", (None, None, self.q_heads, self.head_dim), self.device)
        batch, count = q.shape[:2]
        p = struct("adamas_step_params")
        p.threads, p.batch, p.rows, p.causal = self.threads, batch, count, causal
        p.q, p.q_dtype = q.pointer, q.dtype
        p.q_stride_batch, p.q_stride_row, p.q_stride_head = q.strides[:3]
        native_k, native_v, keep_rows = cache._rows(k, v, pages, layout, first_sequence)
        p.k, p.v = native_k[0], native_v[0]
        p.sequences, keep_sequences = integers(sequences, "sequences", batch, self.device)
        p.lengths, keep_lengths = integers(lengths, "lengths", batch, self.device)
        p.scale, p.softcap = scale or 0.0, softcap
        p.k_scale, p.v_scale = k_scale, v_scale
        keep = []
        if mask is not None:
            mask = whole(mask, "mask", (batch, count, None), self.device)
            p.mask, p.mask_dtype = mask.pointer, mask.dtype
            p.mask_stride_batch, p.mask_stride_row = mask.strides[:2]
        for name, values in (("slopes", slopes), ("sink_logits", sink_logits)):
            if values is not None:
                view = whole(values, name, (self.q_heads,), self.device)
                if view.dtype != lib.ADAMAS_F32:
                    raise TypeError(f"{name}: elements are {view.dtype_name}; they have to be float32")
                setattr(p, name, ffi.cast("float *", view.address))
                keep.append(view)
        out, p.out = q.empty(batch, count, self.q_heads, self.head_dim)
        p.out_stride_head = self.head_dim * 4
        p.out_stride_row = self.q_heads * p.out_stride_head
        p.out_stride_batch = count * p.out_stride_row
        found = {}
        for name in wanted:
            if name not in _KINDS:
                raise ValueError(f"wanted: {name!r}; there are {', '.join(_KINDS)}")
            found[name], pointer = q.empty(batch, count, self.q_heads)
            setattr(p, name, pointer)
        if self.workspace is not None:
            p.workspace, p.workspace_bytes = ffi.cast("void *", self.workspace.data_ptr()), self.workspace.numel()
        stats = ffi.NULL if self.device.is_gpu else struct("adamas_step_stats")
        p.stats = stats if self._counted is None else ffi.cast("adamas_step_stats *", self._counted.data_ptr())
        with self.device.current():
            p.stream = self.device.stream()
            check(lib.adamas_step(self._native, cache._native, p))
        del keep_rows, keep_sequences, keep_lengths, keep
        result = Result(out, **found, stats={} if self.device.is_gpu else {name: getattr(stats, name) for name in _STATS})
        for name, value in (("rows", batch * count), *result.stats.items()):
            self._counts[name] = self._counts.get(name, 0) + value
        return result

    def selection(self, q_head: int) -> np.ndarray:
        """The tokens that the last step attended to for its last sequence and row, ascending: int64 [tokens]."""
        count = ffi.new("int64_t *")
        lib.adamas_selection(self._native, q_head, ffi.NULL, 0, count)
        tokens = np.empty(count[0], np.int64)
        check(lib.adamas_selection(self._native, q_head, ffi.cast("int64_t *", tokens.ctypes.data), len(tokens), count))
        return tokens
