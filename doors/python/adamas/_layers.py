"""Layers of a cache of transformers whose keys and values lie in buffers that stay, with their codes beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicLayer, StaticLayer

from . import torch as ops
from ._library import HEAD_DIMS, lib, text

if TYPE_CHECKING:
    from .transformers import Enabled

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _why_not(k: torch.Tensor, v: torch.Tensor) -> str | None:
    """Why keys and values like these are not served, if they are not."""
    if k.device.type == "cuda" and lib.adamas_gpu_count() == 0:
        return f"its keys are on {k.device}, and the library sees no GPU: {text(lib.adamas_gpu_reason())}"
    if k.device.type not in ("cpu", "cuda"):
        return f"its keys are on {k.device}"
    if k.dtype not in _DTYPES:
        return f"its keys are {k.dtype}"
    if k.shape[3] != v.shape[3] or k.shape[3] not in HEAD_DIMS:
        return f"keys of {k.shape[3]} dimensions and values of {v.shape[3]}"
    return None


class AdamasLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in buffers that grow by halves, and their codes beside them."""

    keys: Any  # [batch, kv_heads, tokens, head_dim]: views of the buffers, once there are any
    values: Any

    def __init__(self, index: int, enabled: Enabled) -> None:
        super().__init__()
        self.index, self.enabled = index, enabled
        self.codes: Any = None  # ops.Cache
        self.buffers: Any = None  # (K, V), [batch, kv_heads, room, head_dim]
        self.base = 0
        self.turns = 1  # 2: beams are reordered into other sequences of the codes, and back

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        value_states = key_states if value_states is None else value_states  # transformers 4 gives the keys alone
        self.device, self.dtype = key_states.device, key_states.dtype
        self.codes, self.buffers, self.base = None, None, 0
        self.keys, self.values = (x[:, :, :0] for x in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first = self.get_seq_length()
        self._make_room(first + key_states.shape[-2], key_states, value_states)
        self._extend(first, key_states, value_states)
        self.keys.adamas_layer = self
        return self.keys, self.values

    def _make_room(self, tokens: int, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Buffers for so many tokens, with what is there."""
        batch = key_states.shape[0]
        if self.buffers is not None and self.buffers[0].shape[0] == batch and self.buffers[0].shape[2] >= tokens:
            return
        room = max(256, (tokens * 3 // 2 + 63) // 64 * 64)
        buffers = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            buffer = new.new_zeros(batch, new.shape[1], room, new.shape[3])
            if old.shape[2] > 0:
                buffer[:, :, : old.shape[2]] = old
            buffers.append(buffer)
        length = self.keys.shape[2]
        self.buffers = tuple(buffers)
        self.keys, self.values = (x[:, :, :length] for x in buffers)
        self.codes = None

    def _extend(self, first: int, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        end = first + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, first:end] = new
        self.keys, self.values = (x[:, :, :end] for x in self.buffers)
        if self.codes is not None:
            self._encode(first, end)

    def _encode(self, first: int, end: int) -> None:
        k, v = self.buffers
        self.codes.append_rows(k, v, self._lengths(end), end - first, self._sequences(), first_sequence=self.base)

    def _lengths(self, length: int) -> torch.Tensor:
        """int64 [batch] on the device."""
        k = self.buffers[0]
        return torch.full((k.shape[0],), length, device=k.device)

    def _sequences(self) -> torch.Tensor | None:
        """int64 [batch] which ones of the codes' sequences the batch is, on the device; None: the first ones."""
        k = self.buffers[0]
        return torch.arange(self.base, self.base + k.shape[0], device=k.device) if self.base > 0 else None

    def served(self) -> str | None:
        """Why it is not, if it is not."""
        return _why_not(*self.buffers)

    def with_codes(self) -> ops.Cache:
        """The codes of all rows, made when they are first asked for."""
        if self.codes is None:
            k = self.buffers[0]
            self.codes = ops.Cache(
                k.shape[1], k.shape[3], k.shape[2], self.turns * k.shape[0], self.enabled.config, self.index, k.device
            )
            self.base = 0
            self._encode(0, self.get_seq_length())
        return self.codes

    def attend(self, q: torch.Tensor, **options: Any) -> torch.Tensor:
        """Attention of q [batch, rows, q_heads, head_dim] to all rows: float32, of that shape. options: of ``Plan.step``."""
        k, v = self.buffers
        codes, (batch, rows, q_heads, _) = self.with_codes(), q.shape
        plan, observed = self.enabled.plan(q_heads, codes, rows, batch), self.enabled.observer is not None
        result = plan.step(
            codes, q, k, v, self._lengths(self.get_seq_length()), self._sequences(), first_sequence=self.base,
            wanted=("mass", "noise") if observed else ("mass",), **options,
        )  # fmt: skip
        self.last = (plan, result) if observed else None
        return result.out

    def _replace(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Other rows, of which nothing is known."""
        self.keys, self.values = keys, values
        self.codes, self.buffers = None, None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.get_seq_length() == 0:
            return
        beam_idx = beam_idx.to(self.keys.device)
        length, batch = self.get_seq_length(), self.keys.shape[0]
        if self.buffers is None or len(beam_idx) != batch:
            return self._replace(self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx))
        self.buffers = tuple(x.index_select(0, beam_idx) for x in self.buffers)
        self.keys, self.values = (x[:, :, :length] for x in self.buffers)
        if self.turns == 1:
            self.turns, self.codes = 2, None
        if self.codes is not None:
            other = batch - self.base
            for b, source in enumerate(beam_idx.tolist()):
                self.codes.share(self.base + source, other + b, length)
            self.base = other

    def crop(self, tokens: int) -> None:
        before = self.get_seq_length()
        super().crop(tokens)  # what a number means differs from version to version
        length = self.get_seq_length()
        if self.codes is not None and length < before:
            for b in range(self.keys.shape[0]):
                self.codes.truncate(self.base + b, length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.get_seq_length() > 0:
            self._replace(self.keys.repeat_interleave(repeats, dim=0), self.values.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.get_seq_length() > 0:
            self._replace(self.keys[indices, ...], self.values[indices, ...])

    def reset(self) -> None:
        self.keys = self.values = self.codes = self.buffers = None
        self.is_initialized = False

    def __deepcopy__(self, memo: Any) -> AdamasLayer:
        """A prompt's cache is copied to be used again: rows of its own, and codes when they are asked for."""
        copy = type(self)(self.index, self.enabled)
        if self.is_initialized:
            copy.lazy_initialization(self.keys, self.values)
            copy.keys, copy.values = self.keys.clone(), self.values.clone()
        return copy


class AdamasStaticLayer(StaticLayer):  # type: ignore[misc]
    """A layer of a static cache, and its codes. Its length lies on the device, so that decoding can be traced and captured."""

    keys: Any  # [batch, kv_heads, max_cache_len, head_dim]
    values: Any

    def __init__(self, index: int, enabled: Enabled, max_cache_len: int) -> None:
        super().__init__(max_cache_len)
        self.index, self.enabled = index, enabled
        self.codes: Any = None  # ops.Cache
        self.lengths_of_all: Any = None  # int64 [batch] on the device, of more than one sequence
        self.why_not: str | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.why_not = _why_not(self.keys, self.values)  # asked once: a traced step cannot
        if self.why_not is None:
            batch, kv_heads, tokens, head_dim = self.keys.shape
            self.codes = ops.Cache(
                kv_heads, head_dim, tokens, batch, self.enabled.config, self.index, self.keys.device
            )
        self.begin()

    def begin(self) -> None:
        """Once there are keys and values."""
        if self.keys.shape[0] > 1:
            self.lengths_of_all = self.cumulative_length.repeat(self.keys.shape[0])
            torch._dynamo.mark_static_address(self.lengths_of_all)
        self.keys.adamas_layer = self

    def lengths(self) -> torch.Tensor:
        """int64 [batch] on the device."""
        return self.cumulative_length.reshape(1) if self.lengths_of_all is None else self.lengths_of_all

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.codes is not None:
            if self.lengths_of_all is not None:
                self.lengths_of_all.copy_(self.cumulative_length)
            ops.append(self.codes, keys, values, self.lengths(), key_states.shape[-2])
        return keys, values

    def served(self) -> str | None:
        """Why it is not, if it is not."""
        return self.why_not or (None if self.codes is not None else "its rows were reordered")

    def attend(self, q: torch.Tensor, **options: Any) -> torch.Tensor:
        """Attention of q [batch, rows, q_heads, head_dim] to all rows: float32, of that shape. options: of ``ops.attend``."""
        plan = self.enabled.plan(q.shape[2], self.codes, q.shape[1], q.shape[0])
        return ops.attend(plan, self.codes, q, self.keys, self.values, self.lengths(), **options)[0]

    def crop(self, tokens: int) -> None:
        if tokens > 0:
            raise ValueError(f"crop: {tokens}; the number of rows that go is said as a negative one")
        self.cumulative_length.add_(tokens)
        if self.codes is not None:
            for b in range(self.keys.shape[0]):
                self.codes.truncate(b, int(self.cumulative_length))

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)  # other tensors, of which nothing is known
        self.codes = None

    def reset(self) -> None:
        super().reset()
        if self.codes is not None:
            self.codes.clear()
