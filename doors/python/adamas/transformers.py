"""Adamas inside Hugging Face transformers: ``adamas.enable(model)``.

Prompts stay the model's, unless ``rows="all"``. Rows that are decoded go through the library where the model attends with its whole
cache; what it cannot serve (sliding windows, static caches, attention weights as an output, gradients, GPUs) is attended to densely, and
said once.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ._attention import Cache, Plan, Result
from ._config import Config
from ._library import HEAD_DIMS

NAME = "adamas"
MOST_ROWS = 63  # of a sequence; more are a prompt
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

log = logging.getLogger("adamas")


@functools.lru_cache(None)
def _say_once(sentence: str) -> None:
    log.warning(sentence)


class AdamasLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in buffers that grow by halves, and their codes beside them."""

    keys: Any  # [batch, kv_heads, tokens, head_dim]: views of the buffers, once there are any
    values: Any

    def __init__(self, index: int, enabled: Enabled) -> None:
        super().__init__()
        self.index, self.enabled = index, enabled
        self.codes: Any = None  # Cache
        self.buffers: Any = None  # (K, V), [batch, kv_heads, room, head_dim]
        self.base = 0

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
        for b in range(k.shape[0]):
            self.codes.append(self.base + b, first, end - first, k, v, first_sequence=self.base)

    def served(self) -> str | None:
        """Why it is not, if it is not."""
        k, v = self.buffers
        if k.device.type != "cpu":
            return f"its keys are on {k.device}"
        if k.dtype not in _DTYPES:
            return f"its keys are {k.dtype}"
        if k.shape[3] != v.shape[3] or k.shape[3] not in HEAD_DIMS:
            return f"keys of {k.shape[3]} dimensions and values of {v.shape[3]}"
        return None

    def with_codes(self) -> Cache:
        """The codes of all rows, made when they are first asked for. Beams take turns with a second half of the sequences."""
        if self.codes is None:
            k = self.buffers[0]
            self.codes = Cache(k.shape[1], k.shape[3], k.shape[2], 2 * k.shape[0], self.enabled.config, self.index)
            self.base = 0
            self._encode(0, self.get_seq_length())
        return self.codes

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


def _dense(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if softcap is None and sinks is None:
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query.float() @ key.float().transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril(key.shape[2] - query.shape[2])
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[2]]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = torch.nan_to_num(scores.softmax(dim=-1))[..., : key.shape[2]]
    return (weights @ value.float()).transpose(1, 2).contiguous().to(query.dtype), None


def _mask_of(attention_mask: torch.Tensor | None, batch: int, rows: int, tokens: int) -> Any:
    """An additive mask [batch, rows, tokens] of float32, or None; False: it is of another kind."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 4 or attention_mask.shape[1] != 1:
        return False
    mask = attention_mask[:, 0, :, :tokens]
    if mask.dtype == torch.bool:
        if torch.equal(mask, torch.ones(rows, tokens, dtype=torch.bool).tril(tokens - rows).expand_as(mask)):
            return None  # causal and nothing else
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    else:
        # The smallest numbers stand for what is hidden.
        mask = mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
    return mask.expand(batch, rows, tokens).contiguous()


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``attn_implementation="adamas"``: of transformers' AttentionInterface.

    Args: query [batch, q_heads, rows, head_dim], key and value [batch, kv_heads, tokens, head_dim].
    Returns: ([batch, rows, q_heads, head_dim], None).
    """
    layer: Any = getattr(key, "adamas_layer", None)
    batch, q_heads, rows, head_dim = query.shape
    dense = functools.partial(
        _dense, module, query, key, value, attention_mask, scaling, softcap, s_aux, dropout=dropout, **kwargs
    )
    is_prompt = rows > MOST_ROWS or key.shape[2] == rows
    if is_prompt and not (layer is not None and layer.enabled.every_row):
        return dense()
    why = None
    if layer is None:
        why = "its cache is none of ours: a sliding window, a static cache, or a model without adamas.enable"
    elif torch.is_grad_enabled() and query.requires_grad:
        why = "gradients are wanted"
    elif dropout > 0 or kwargs.get("output_attentions") or kwargs.get("position_bias") is not None:
        why = "dropout, attention weights or a position bias are wanted"
    else:
        why = layer.served()
    mask = None if why else _mask_of(attention_mask, batch, rows, key.shape[2])
    if mask is False:
        why = "its mask is not one for all heads"
    if why:
        _say_once(f"a layer is attended to densely: {why}")
        return dense()
    k, v = layer.buffers
    plan = layer.enabled.plan(q_heads, k.shape[1], head_dim, k.shape[2])
    result = plan.step(
        layer.with_codes(),
        query.detach().transpose(1, 2),
        k,
        v,
        lengths=[key.shape[2]] * batch,
        sequences=range(layer.base, layer.base + batch),
        causal=mask is None,
        scale=scaling,
        softcap=softcap or 0.0,
        mask=mask,
        sink_logits=None if s_aux is None else s_aux.detach().float().contiguous(),
        first_sequence=layer.base,
    )
    layer.enabled.count(result.stats)
    if layer.enabled.observer is not None:
        layer.enabled.observer(Step(layer.index, query, key, scaling or head_dim**-0.5, softcap or 0.0, s_aux, plan, result))
    return result.out.to(query.dtype), None


@dataclass
class Step:
    """What an observer sees of a layer's step."""

    layer: int
    query: torch.Tensor  #: [batch, q_heads, rows, head_dim]
    key: torch.Tensor  #: [batch, kv_heads, tokens, head_dim]
    scale: float
    softcap: float  #: 0: none
    sink_logits: torch.Tensor | None  #: [q_heads]
    plan: Plan  #: ``selection`` is that of this step
    result: Result


def cache_parameter(model: Any) -> str:
    """What a model's forward calls its cache, which is another word in newer versions."""
    parameters = inspect.signature(inspect.unwrap(model.forward)).parameters
    return next(name for name in ("cache", "past_key_values") if name in parameters)


class Enabled:
    """A model whose decoding goes through the library. As a context manager it ends with the block."""

    def __init__(self, model: Any, config: Config, threads: int) -> None:
        self.model, self.config, self.threads = model, config, threads
        self.stats: dict[str, float] = {}
        self.every_row = config.rows == "all"
        self.observer: Callable[[Step], None] | None = None  # called after every step of a layer
        self._plans: dict[tuple[int, int, int], tuple[int, Plan]] = {}
        self._before = model.config._attn_implementation
        self._parameter = cache_parameter(model)
        model.set_attn_implementation(NAME)
        self._hook = model.register_forward_pre_hook(self._prepare, with_kwargs=True)

    def plan(self, q_heads: int, kv_heads: int, head_dim: int, tokens: int) -> Plan:
        shape = (q_heads, kv_heads, head_dim)
        if shape not in self._plans or self._plans[shape][0] < tokens:
            self._plans[shape] = tokens, Plan(*shape, tokens, self.config, self.threads)
        return self._plans[shape][1]

    def count(self, stats: dict[str, float]) -> None:
        for name, value in stats.items():
            self.stats[name] = self.stats.get(name, 0) + value

    def _prepare(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Gives the cache of a call our layers, in place of those that grow by concatenation."""
        cache = next((kwargs[name] for name in ("cache", "past_key_values") if kwargs.get(name) is not None), None)
        if cache is None:
            if kwargs.get("use_cache", getattr(model.config, "use_cache", True)) is False:
                return None
            cache = kwargs[self._parameter] = DynamicCache(config=model.config)
        if isinstance(cache, TransformersCache) and hasattr(cache, "layers"):
            for i, layer in enumerate(cache.layers):
                if type(layer) is DynamicLayer:
                    cache.layers[i] = self._layer(i, layer)
            if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
                replicate: Any = lambda *args, **kwargs: AdamasLayer(len(cache.layers), self)  # noqa: E731
                cache.layer_class_to_replicate = replicate
        return args, kwargs

    def _layer(self, index: int, layer: Any) -> AdamasLayer:
        ours = AdamasLayer(index, self)
        if layer.is_initialized and layer.keys.numel() > 0:
            ours.update(layer.keys, layer.values)
        return ours

    def disable(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            self.model.set_attn_implementation(self._before)
            del self.model._adamas

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.disable()


def enable(model: Any, config: Config | None = None, threads: int | None = None, **settings: Any) -> Enabled:
    """Decodes a model's tokens through the library from now on; prompts as well, with ``rows="all"``.

    Args:
        model: a causal language model of transformers, on a CPU.
        config: ``adamas.Config``; None: that of the environment, with ``settings`` on top (``budget=128``,
            ``policy="quest"``, ...).
        threads: that work on a step; None: as many as PyTorch has.

    Returns: ``Enabled``: ``stats``, ``disable()``; or a context manager.
    """
    if config is not None and settings:
        raise ValueError("settings go into the config that is given")
    disable(model)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config = config or Config.from_environment(**settings)
    model._adamas = Enabled(model, config, threads or torch.get_num_threads())
    return model._adamas


def disable(model: Any) -> None:
    """The model attends as it did before."""
    enabled = getattr(model, "_adamas", None)
    if enabled is not None:
        enabled.disable()


def stats(model: Any) -> dict[str, float]:
    """Counts of all steps since ``enable``: adamas_step_stats of the C header, added up."""
    return dict(model._adamas.stats)
