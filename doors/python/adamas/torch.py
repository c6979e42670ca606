"""Adamas as operators of PyTorch: ``torch.ops.adamas.append`` and ``attend``, for tensors on a CPU and on a GPU.

They can be traced (``torch.compile(fullgraph=True)``), work in the current stream, and may be captured in a CUDA graph that is
replayed while lengths and page tables change. ``BatchDecode`` has them as plan() and run() over pages, as FlashInfer's users
know it.

>>> import torch
>>> k, v, q = (torch.randn(1, 2, 4096, 64) for _ in range(3))
>>> cache, plan = Cache(kv_heads=2, head_dim=64, capacity=4096), Plan(8, 2, 64, max_tokens=4096)
>>> lengths = torch.tensor([4096])
>>> append(cache, k, v, lengths, rows=4096)
>>> out, lse = attend(plan, cache, q[:, 0, :8].reshape(1, 1, 8, 64), k, v, lengths)
>>> out.shape, lse.shape
(torch.Size([1, 1, 8, 64]), torch.Size([1, 1, 8]))
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from . import _attention
from ._config import Config
from ._library import lib
from ._rows import Pages

__all__ = ["BatchDecode", "Cache", "Plan", "append", "attend"]

# Operators take numbers and tensors. A cache or a plan is named by a number.
_numbers = itertools.count(1)
_named: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _name(of: Any) -> int:
    number = next(_numbers)
    _named[number] = of
    return number


def _of(number: int, kind: type) -> Any:
    found = _named.get(number)
    if not isinstance(found, kind):
        raise ValueError(f"{number} names no {kind.__name__} that is alive")
    return found


class Cache(_attention.Cache):
    """``adamas.Cache``, for the operators of this module.

    ``handle`` names it. ``state`` stands for its codes where operators are traced: ``append`` changes it, ``attend`` reads it, so
    that neither moves past the other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handle = _name(self)
        self.state = torch.zeros(1, device=self.device.name if self.device.is_gpu else "cpu")
        torch._dynamo.mark_static_address(self.state)  # a CUDA graph of torch.compile changes it in place


class Plan(_attention.Plan):
    """``adamas.Plan``, for the operators of this module. ``handle`` names it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handle = _name(self)


def _pages(table: Tensor | None, k: Tensor, layout: str) -> Pages | None:
    return None if table is None else Pages(table, k.shape[2] if layout == "HND" else k.shape[1])


@torch.library.custom_op(
    "adamas::append",
    mutates_args=("state",),
    schema="(int cache, Tensor(a!) state, Tensor k, Tensor v, Tensor lengths, int rows, Tensor? sequences, Tensor? table, "
    "str layout) -> ()",
)
def _append(
    cache: int,
    state: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    rows: int,
    sequences: Tensor | None,
    table: Tensor | None,
    layout: str,
) -> None:
    _of(cache, Cache).append_rows(k, v, lengths, rows, sequences, _pages(table, k, layout), layout)


@_append.register_fake
def _(*args: Any) -> None:
    return None


@torch.library.custom_op(
    "adamas::attend",
    mutates_args=(),
    schema="(int plan, int cache, Tensor state, Tensor q, Tensor k, Tensor v, Tensor lengths, Tensor? sequences, Tensor? table, "
    "str layout, bool causal, float? scale, float softcap, Tensor? mask, Tensor? slopes, Tensor? sink_logits, float k_scale, "
    "float v_scale) -> (Tensor, Tensor)",
)
def _attend(
    plan: int,
    cache: int,
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    sequences: Tensor | None,
    table: Tensor | None,
    layout: str,
    causal: bool,
    scale: float | None,
    softcap: float,
    mask: Tensor | None,
    slopes: Tensor | None,
    sink_logits: Tensor | None,
    k_scale: float,
    v_scale: float,
) -> tuple[Tensor, Tensor]:
    of = {"mask": mask, "slopes": slopes, "sink_logits": sink_logits, "k_scale": k_scale, "v_scale": v_scale}
    result = _of(plan, Plan).step(
        _of(cache, Cache), q, k, v, lengths, sequences, causal, scale, softcap,
        pages=_pages(table, k, layout), layout=layout, wanted=("lse",), **of,
    )  # fmt: skip
    return result.out, result.lse


@_attend.register_fake
def _(plan: int, cache: int, state: Tensor, q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[:3], dtype=torch.float32)


def append(
    cache: Cache,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    rows: int = 1,
    sequences: Tensor | None = None,
    table: Tensor | None = None,
    layout: str = "HND",
) -> None:
    """The last ``rows`` rows of each of a batch of sequences were written to k and v, or as many as there are.

    Args:
        k, v: [sequences, kv_heads, tokens, head_dim], or [pages, kv_heads, page_tokens, head_dim] with a table; float32,
            float16, bfloat16 or float8_e4m3fn. ``layout="NHD"``: tokens before heads.
        lengths: int64 [batch] tokens, these rows included, on k's device.
        sequences: int64 [batch] which ones; None: 0, 1, 2, ...
        table: int32 [sequences, pages of a sequence] page ids.
    """
    _append(cache.handle, cache.state, k, v, lengths, rows, sequences, table, layout)


def attend(
    plan: Plan,
    cache: Cache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    sequences: Tensor | None = None,
    table: Tensor | None = None,
    layout: str = "HND",
    causal: bool = True,
    scale: float | None = None,
    softcap: float = 0.0,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    sink_logits: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attention of ``rows`` query rows of each of a batch of sequences, as ``adamas.Plan.step`` has it.

    Args:
        q: [batch, rows, q_heads, head_dim], float32, float16 or bfloat16.
        k, v, lengths, sequences, table, layout: as for ``append``.
        The others as for ``adamas.Plan.step``.

    Returns: out, float32 [batch, rows, q_heads, head_dim]; lse, float32 [batch, rows, q_heads], the natural logarithm.
    """
    return _attend(
        plan.handle, cache.handle, cache.state, q, k, v, lengths, sequences, table, layout, causal, scale, softcap, mask,
        slopes, sink_logits, k_scale, v_scale,
    )  # fmt: skip


class BatchDecode:
    """Decoding of a batch of sequences whose K and V lie in pages: ``plan`` once a step, ``append`` and ``run`` in every layer.

    The tables and lengths of ``plan`` lie in tensors that stay, so a CUDA graph of the layers is replayed after every ``plan``.
    Where page_tokens is a multiple of 64, codes go by page: sequences may share pages, and a batch row may be any sequence at
    any step. With smaller pages codes belong to sequences, which ``sequences`` of ``plan`` names.

    Args:
        q_heads, kv_heads, head_dim: kv_heads divides q_heads.
        pages, page_tokens: of K and V of a layer; page_tokens is a power of two.
        max_batch: sequences of a step.
        max_tokens: of a sequence.
        layers: each has codes of its own.
        layout: "NHD": K and V are [pages, page_tokens, kv_heads, head_dim]; "HND": [pages, kv_heads, page_tokens, head_dim].
        config: ``adamas.Config``.
        device: "cuda", "cuda:1", "cpu".
        rows: query rows of a sequence at most.
        sequences: that there are, where codes belong to them; 0: max_batch.
        workspace: as for ``adamas.Plan``.
    """

    def __init__(
        self,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        page_tokens: int,
        max_batch: int,
        max_tokens: int,
        layers: int = 1,
        layout: str = "NHD",
        config: Config | None = None,
        device: Any = "cuda",
        rows: int = 1,
        sequences: int = 0,
        workspace: Any = None,
    ) -> None:
        self.page_tokens, self.layout = page_tokens, layout
        self.by_page = page_tokens % lib.ADAMAS_BLOCK_TOKENS == 0
        most = max_batch if self.by_page else sequences or max_batch
        self.caches = [
            Cache(
                kv_heads, head_dim, max_tokens, most, config, layer, device, self.by_page, pages, page_tokens,
            )
            for layer in range(layers)
        ]  # fmt: skip
        self._plan = Plan(
            q_heads, kv_heads, head_dim, max_tokens, config, device=device, max_rows=max_batch * rows, workspace=workspace
        )
        where = self.caches[0].state.device
        self.table = torch.zeros(most, -(-max_tokens // page_tokens), dtype=torch.int32, device=where)
        self.lengths = torch.zeros(max_batch, dtype=torch.int64, device=where)
        self.sequences = torch.arange(max_batch, device=where)
        self.batch = 0

    def plan(self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, sequences: Tensor | None = None) -> None:
        """The step's sequences, as compressed rows.

        Args:
            indptr: int [batch + 1]: sequence b has the pages indices[indptr[b] : indptr[b + 1]], in order.
            indices: int [pages of all].
            last_page_len: int [batch] tokens in a sequence's last page, the step's own included.
            sequences: int [batch] which of the ``sequences`` they are, where codes belong to them; None: 0, 1, 2, ...
        """
        device = self.table.device
        indptr, indices, last = (x.to(device, torch.int64) for x in (indptr, indices, last_page_len))
        counts = indptr.diff()
        if indptr.dim() != 1 or indptr.numel() != last.numel() + 1:
            raise ValueError(f"indptr: shape {tuple(indptr.shape)}; last_page_len says ({last.numel() + 1},)")
        if counts.numel() > 0 and (int(counts.min()) < 0 or int(indptr[0]) < 0 or int(indptr[-1]) > indices.numel()):
            raise ValueError(f"indptr: it has to ascend from 0 to at most {indices.numel()}, the number of indices")
        if counts.numel() > 0 and int(counts.max()) > self.table.shape[1]:
            raise ValueError(f"indptr: a sequence of {int(counts.max())} pages; max_tokens are {self.table.shape[1]} pages")
        places = indptr[:-1, None] + torch.arange(self.table.shape[1], device=device)
        table = indices[places.clamp(max=indices.numel() - 1)] if indices.numel() > 0 else torch.zeros_like(places)
        self.plan_table(table, torch.where(counts > 0, (counts - 1) * self.page_tokens + last, 0), sequences)

    def plan_table(self, table: Tensor, lengths: Tensor, sequences: Tensor | None = None) -> None:
        """The step's sequences, as a table.

        Args:
            table: int [batch, pages of a sequence] page ids; those of tokens that are not there yet are not looked at.
            lengths: int [batch] tokens, the step's own included.
            sequences: as for ``plan``.
        """
        batch, width = table.shape
        if batch > len(self.lengths) or lengths.shape != (batch,) or width > self.table.shape[1]:
            raise ValueError(
                f"table: shape {tuple(table.shape)}, lengths: {tuple(lengths.shape)}; max_batch is {len(self.lengths)}, "
                f"and max_tokens are {self.table.shape[1]} pages"
            )
        if not self.by_page:
            self.sequences[:batch] = torch.arange(batch, device=self.sequences.device) if sequences is None else sequences
        self.table[self.sequences[:batch], :width] = table.to(self.table.device, torch.int32)
        self.lengths[:batch] = lengths
        self.batch = batch

    def append(self, kv: Tensor | tuple[Tensor, Tensor], layer: int = 0, rows: int = 1) -> None:
        """The last ``rows`` tokens of every sequence of the step were written to a layer's pages, or as many as there are.

        Args:
            kv: (K, V) in the layout; or one tensor of both, [pages, 2, ...].
        """
        k, v = _pair(kv)
        lengths, sequences = self.lengths[: self.batch], self.sequences[: self.batch]
        append(self.caches[layer], k, v, lengths, rows, sequences, self.table, self.layout)

    def run(
        self, q: Tensor, kv: Tensor | tuple[Tensor, Tensor], layer: int = 0, return_lse: bool = False, **options: Any
    ) -> Any:
        """Attention of the step's queries.

        Args:
            q: [batch, q_heads, head_dim]; or [batch, rows, q_heads, head_dim] of the last rows of each sequence.
            kv: as for ``append``.
            options: scale, softcap, ...: those of ``attend``.

        Returns: out, of q's shape and dtype; with ``return_lse`` (out, lse), lse float32, the natural logarithm.
        """
        k, v = _pair(kv)
        rows = q.unsqueeze(1) if q.dim() == 3 else q
        batch = q.shape[0]
        out, lse = attend(
            self._plan, self.caches[layer], rows, k, v, self.lengths[:batch], self.sequences[:batch], self.table,
            self.layout, **options,
        )  # fmt: skip
        out = out.to(q.dtype).reshape(q.shape)
        return (out, lse.reshape(q.shape[:-1])) if return_lse else out


def _pair(kv: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return (kv[:, 0], kv[:, 1]) if isinstance(kv, Tensor) else kv
