"""Single stages of a step, for one query row: scores from codes, selection by scores, attention over given tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from ._device import Device
from ._library import Error, check, ffi, lib, struct
from ._rows import Pages, rows_of, whole

_CPU = Device("cpu")  # where single stages run
NONE, ALWAYS = -32768, 32767

# How the parts of a context meet: called with "max", "sum" or "behind" and float64 values, of which it makes those of all parts.
Merge = Callable[[str, np.ndarray], None]


@contextmanager
def _merging(params: Any, merge: Optional[Merge]) -> Iterator[None]:
    """A function of Python's as ``adamas_merge_fn``. What it raises is raised by the call."""
    raised: list[BaseException] = []
    names = {lib.ADAMAS_MERGE_MAX: "max", lib.ADAMAS_MERGE_SUM: "sum", lib.ADAMAS_MERGE_BEHIND: "behind"}

    @ffi.callback("int32_t(void *, int32_t, double *, int64_t)", error=1)
    def call(user: Any, op: int, values: Any, count: int) -> int:
        try:
            merge(names[op], np.frombuffer(ffi.buffer(values, 8 * count)) if count else np.empty(0))  # type: ignore[misc]
        except BaseException as exception:  # noqa: BLE001: nothing may pass through C
            raised.append(exception)
            return 1
        return 0

    if merge is not None:
        params.merge = call
    try:
        yield
    except Error:
        if raised:
            raise raised[0] from None
        raise


@dataclass
class Scores:
    """Scores of every token, by query head: ``softmax``'s exponent is about ``unit * scores + highest``."""

    scores: np.ndarray  #: int16 [q_heads, tokens]; 32767: read in any case (sinks, recent tokens, those without codes yet)
    unit: np.ndarray  #: float64 [q_heads]
    highest: np.ndarray  #: float64 [q_heads]
    noise: np.ndarray  #: float32 [q_heads]: variance of an estimate; above ``max_noise`` a step lets the head read all
    tokens: int  #: of the whole context, where this is a part of one

    def estimates(self) -> np.ndarray:
        """float64 [q_heads, tokens] of ``scale q k``; NaN where codes tell nothing."""
        known = np.abs(self.scores.astype(np.int32) * 2 + 1) != 65535
        return np.where(known, self.unit[:, None] * self.scores + self.highest[:, None], np.nan)


def scores(
    cache: Any, q: Any, sequence: int = 0, scale: float | None = None, threads: int | None = None, merge: Merge | None = None
) -> Scores:
    """``Cache.scores``."""
    length = cache.length(sequence)
    view = whole(q, "q", (None, cache.head_dim), _CPU)
    q_heads = view.shape[0]
    p = struct("adamas_score_params")
    p.q_heads, p.sequence, p.q, p.q_dtype, p.q_stride_head = q_heads, sequence, view.pointer, view.dtype, view.strides[0]
    p.scale, p.threads = scale or 0.0, threads or len(os.sched_getaffinity(0))
    found = np.empty((q_heads, (length + 63) // 64 * 64), np.int16)
    unit, highest, noise = np.empty(q_heads), np.empty(q_heads), np.empty(q_heads, np.float32)
    tokens = ffi.new("int64_t *")
    p.scores, p.tokens = ffi.cast("int16_t *", found.ctypes.data), tokens
    p.unit, p.highest = (ffi.cast("double *", x.ctypes.data) for x in (unit, highest))
    p.noise = ffi.cast("float *", noise.ctypes.data)
    with _merging(p, merge):
        check(lib.adamas_scores(cache._native, p))
    return Scores(found[:, :length], unit, highest, noise, tokens[0])


def select(scores: Any, budget: int, merge: Merge | None = None) -> list[np.ndarray]:
    """The exact top ``budget`` of each row of scores.

    Args:
        scores: int16 [heads, tokens]. -32768 is never selected; of equal ones the later token is.
        budget: tokens of a head, 1 or more.
        merge: of a context in parts, how they meet: each learns which of its own tokens are among the top of all.

    Returns: int64 [tokens] for each head, ascending.

    >>> select(np.array([[5, 7, 7, -32768, 9]], np.int16), 2)
    [array([2, 4])]
    """
    scores = np.ascontiguousarray(scores)
    if scores.ndim != 2 or scores.dtype != np.int16:
        raise TypeError(f"scores: {scores.dtype} {scores.shape}; they have to be int16 (heads, tokens)")
    heads, count = scores.shape
    room = max(0, min(budget, count))
    indices, counts = np.empty((heads, room), np.int64), np.empty(heads, np.int64)
    p = struct("adamas_select_params")
    p.heads, p.count, p.budget, p.scores = heads, count, budget, ffi.cast("int16_t *", scores.ctypes.data)
    p.indices, p.counts = (ffi.cast("int64_t *", x.ctypes.data) for x in (indices, counts))
    with _merging(p, merge):
        check(lib.adamas_select(p))
    return [indices[h, : counts[h]] for h in range(heads)]


def attend(
    q: Any,
    k: Any,
    v: Any,
    tokens: Sequence[Any] | None = None,
    length: int | None = None,
    sequence: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    pages: Pages | None = None,
    layout: str = "HND",
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Softmax attention of each query head over tokens of its own.

    Args:
        q: [q_heads, head_dim], float32, float16 or bfloat16.
        k, v: as for ``Cache.append``.
        tokens: for each head the tokens that it attends to, in any order; None: all.
        length: that K and V have of the sequence; None: as many as there is room for.
        scale: None: 1 / sqrt(head_dim).
        softcap: softcap tanh(x / softcap) of the scores; 0: none.

    Returns: out float32 [q_heads, head_dim] and lse float32 [q_heads]; without tokens 0 and -inf.
    """
    view = whole(q, "q", (None, None), _CPU)
    q_heads, head_dim = view.shape
    heads_at, tokens_at = (1, 2) if layout == "HND" else (2, 1)
    kv_heads = k.shape[heads_at]
    of = (kv_heads, head_dim, _CPU, pages, layout)
    native_k, keep_k = rows_of(k, "k", *of)
    native_v, keep_v = rows_of(v, "v", *of)
    room = min(x.shape[tokens_at] for x in (k, v)) if pages is None else pages.table.shape[1] * pages.page_tokens
    sequences = (k.shape[0] if pages is None else pages.table.shape[0])
    if not 0 <= sequence < sequences:
        raise ValueError(f"sequence {sequence}; k has {sequences}")
    if length is not None and not 0 <= length <= room:
        raise ValueError(f"length {length}; k and v have room for {room} tokens")
    p = struct("adamas_attend_params")
    p.q_heads, p.kv_heads, p.head_dim = q_heads, kv_heads, head_dim
    p.q, p.q_dtype, p.q_stride_head = view.pointer, view.dtype, view.strides[0]
    p.k, p.v, p.sequence, p.tokens = native_k[0], native_v[0], sequence, room if length is None else length
    p.threads, p.scale, p.softcap = threads or len(os.sched_getaffinity(0)), scale or 0.0, softcap
    if tokens is not None:
        if len(tokens) != q_heads:
            raise ValueError(f"tokens: {len(tokens)} lists; it has to be one for each of {q_heads} heads")
        counts = np.array([len(one) for one in tokens], np.int64)
        indices = np.zeros((q_heads, max(1, counts.max())), np.int64)
        for h, one in enumerate(tokens):
            indices[h, : counts[h]] = one
        p.index_stride = indices.shape[1]
        p.indices, p.counts = (ffi.cast("int64_t *", x.ctypes.data) for x in (indices, counts))
    out, p.out = view.empty(q_heads, head_dim)
    lse, p.lse = view.empty(q_heads)
    check(lib.adamas_attend(p))
    del keep_k, keep_v
    return out, lse
