"""Adamas inside Hugging Face transformers: ``adamas.enable(model)``.

Prompts stay the model's, unless ``rows="all"``. Rows that are decoded go through the library where the model attends with its whole
cache, dynamic or static; what it cannot serve (sliding windows, attention weights as an output, gradients) is attended to densely,
and said once.
"""

from __future__ import annotations

import collections
import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from . import torch as ops
from ._attention import Plan, Result
from ._config import Config
from ._layers import AdamasLayer, AdamasStaticLayer

NAME = "adamas"
MOST_ROWS = 63  # of a sequence; more are a prompt

log = logging.getLogger("adamas")


_by_config: dict[int, Callable[[], Enabled | None]] = {}  # weak, by the id of a model's config, which masks are told of


@functools.lru_cache(None)
def _say_once(sentence: str) -> None:
    log.warning(sentence)


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
    """An additive mask [batch, rows, tokens] of float32, or None; False: it is of another kind. All layers of a step have the same
    one, and on a GPU looking at it waits, so what became of it is kept beside it."""
    if attention_mask is None:
        return None
    key = (batch, rows, tokens, None if attention_mask.is_inference() else attention_mask._version)
    known = getattr(attention_mask, "adamas_mask", None)
    if known is None or known[0] != key:
        known = attention_mask.adamas_mask = (key, _made_mask(attention_mask, batch, rows, tokens))  # type: ignore[attr-defined]
    return known[1]


def _made_mask(attention_mask: torch.Tensor, batch: int, rows: int, tokens: int) -> Any:
    if attention_mask.dim() != 4 or attention_mask.shape[1] != 1:
        return False
    mask = attention_mask[:, 0, :, :tokens]
    if mask.dtype == torch.bool:
        causal = torch.ones(rows, tokens, dtype=torch.bool, device=mask.device).tril(tokens - rows)
        if torch.equal(mask, causal.expand_as(mask)):
            return None  # and nothing else is hidden
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
    else:
        # The smallest numbers stand for what is hidden.
        mask = mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
    return mask.expand(batch, rows, tokens).contiguous()


def _mask(**given: Any) -> torch.Tensor | None:
    """sdpa's mask; or none, where rows are decoded whose caches are ours and that see all that came before them: ``attention``
    knows that from their lengths, and nothing depends on what a mask holds."""
    enabled = _by_config.get(id(given.get("config")), lambda: None)()
    padding = given.get("attention_mask")
    if (
        enabled is not None
        and given["mask_function"] is causal_mask_function
        and given.get("q_length", MOST_ROWS + 1) <= MOST_ROWS
        and enabled.has_all_of(given["q_length"], given["kv_length"])
        and (padding is None or (not torch.compiler.is_compiling() and bool(padding.all())))
    ):
        return None
    return sdpa_mask(**given)


def _causal(key: torch.Tensor, rows: int, layer: Any) -> torch.Tensor | None:
    """The mask that ``_mask`` left out, for rows that are attended to densely: bool [1, 1, rows, tokens]."""
    is_static = isinstance(layer, AdamasStaticLayer)
    if layer is None or (not is_static and rows in (1, key.shape[2])):
        return None
    length = layer.cumulative_length if is_static else key.shape[2]
    last = torch.arange(rows, device=key.device) + (length - rows)
    return (torch.arange(key.shape[2], device=key.device) <= last[:, None])[None, None]


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

    def dense() -> tuple[torch.Tensor, None]:
        mask = _causal(key, rows, layer) if attention_mask is None else attention_mask
        return _dense(module, query, key, value, mask, scaling, softcap, s_aux, dropout=dropout, **kwargs)

    if isinstance(layer, AdamasStaticLayer) and layer.codes is not None:
        # What decodes may be traced later, when nothing can be made.
        layer.enabled.plan(q_heads, layer.codes, 1, batch)
    is_prompt = rows > MOST_ROWS or key.shape[2] == rows
    if is_prompt and not (isinstance(layer, AdamasLayer) and layer.enabled.every_row):
        return dense()
    why, mask = None, None
    if layer is None:
        why = "its cache is none of ours: a sliding window, or a model without adamas.enable"
    elif torch.is_grad_enabled() and query.requires_grad:
        why = "gradients are wanted"
    elif dropout > 0 or kwargs.get("output_attentions") or kwargs.get("position_bias") is not None:
        why = "dropout, attention weights or a position bias are wanted"
    else:
        why = layer.served()
    if why is None and attention_mask is not None and torch.compiler.is_compiling():
        why = "its mask is not known when it is compiled"
    if why is None:
        mask = _mask_of(attention_mask, batch, rows, key.shape[2])
        if mask is False:
            why = "its mask is not one for all heads"
    if why:
        if not torch.compiler.is_compiling():
            _say_once(f"a layer is attended to densely: {why}")
        return dense()
    out = layer.attend(
        query.detach().transpose(1, 2),
        causal=mask is None,
        scale=scaling,
        softcap=softcap or 0.0,
        mask=mask,
        sink_logits=None if s_aux is None else s_aux.detach().float().contiguous(),
    )
    if layer.enabled.observer is not None and isinstance(layer, AdamasLayer):
        layer.enabled.observer(
            Step(layer.index, query, key, scaling or head_dim**-0.5, softcap or 0.0, s_aux, *layer.last)  # type: ignore[misc]
        )
    return out.to(query.dtype), None


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
        # Prompts are the model's own; of what comes here of them all the same (``every_row``) each row selects for itself.
        self.model, self.config, self.threads = model, config.but(prompt="engine"), threads
        self.every_row = config.rows == "all"
        self.observer: Callable[[Step], None] | None = None  # called after every step of a layer with a dynamic cache
        self._plans: dict[tuple[int, ...], ops.Plan] = {}  # the largest of each shape
        self._all_plans: list[ops.Plan] = []  # captured graphs work in the memory of smaller ones
        self._cache: Any = None  # weak: the last one
        self._before = model.config._attn_implementation
        self._parameter = cache_parameter(model)
        model.set_attn_implementation(NAME)
        self._hook = model.register_forward_pre_hook(self._prepare, with_kwargs=True)
        for config in (model.config, model.config.get_text_config()):
            _by_config[id(config)] = weakref.ref(self)

    def plan(self, q_heads: int, codes: ops.Cache, rows: int, batch: int) -> ops.Plan:
        """For steps of so many rows of each of a batch of sequences."""
        most = 1 << (rows * batch - 1).bit_length()
        key = (q_heads, codes.kv_heads, codes.head_dim, most)
        plan = self._plans.get(key)
        if plan is None or plan.max_tokens < codes.capacity:
            of = (q_heads, codes.kv_heads, codes.head_dim, codes.capacity)
            plan = self._plans[key] = ops.Plan(*of, self.config, self.threads, codes.device.name, most)
            self._all_plans.append(plan)
        return plan

    @property
    def stats(self) -> dict[str, float]:
        """Counts of all steps: query rows, and adamas_step_stats of the C header, on a GPU with the setting ``stats``. The query
        rows that a graph replays are not in ``rows``."""
        total: collections.Counter[str] = collections.Counter()
        for plan in self._all_plans:
            total.update(plan.counts)  # type: ignore[arg-type]
        return dict(total)

    def has_all_of(self, rows: int, tokens: int) -> bool:
        """Whether all layers of the last cache that have no window are ours, and ``rows`` more rows see so many of their tokens."""
        cache = self._cache() if self._cache is not None else None
        whole = [] if cache is None else [layer for layer in cache.layers if not getattr(layer, "is_sliding", False)]
        return len(whole) > 0 and all(
            isinstance(layer, (AdamasLayer, AdamasStaticLayer)) and layer.get_mask_sizes(rows)[0] == tokens for layer in whole
        )

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
                elif type(layer) is StaticLayer and hasattr(layer, "cumulative_length"):  # which transformers 4 has not
                    cache.layers[i] = self._static_layer(i, layer)
            if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
                replicate: Any = lambda *args, **kwargs: AdamasLayer(len(cache.layers), self)  # noqa: E731
                cache.layer_class_to_replicate = replicate
            if self._cache is None or self._cache() is not cache:
                self._cache = weakref.ref(cache)
        return args, kwargs

    def _layer(self, index: int, layer: Any) -> AdamasLayer:
        ours = AdamasLayer(index, self)
        if layer.is_initialized and layer.keys.numel() > 0:
            ours.update(layer.keys, layer.values)
        return ours

    def _static_layer(self, index: int, layer: Any) -> AdamasStaticLayer:
        ours = AdamasStaticLayer(index, self, layer.max_cache_len)
        if layer.is_initialized:
            ours.lazy_initialization(layer.keys, layer.values)
            ours.update(layer.keys, layer.values)
            ours.cumulative_length.copy_(layer.cumulative_length)
        return ours

    def disable(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            for key in [key for key, enabled in _by_config.items() if enabled() in (self, None)]:
                del _by_config[key]
            self.model.set_attn_implementation(self._before)
            del self.model._adamas

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.disable()


def enable(model: Any, config: Config | None = None, threads: int | None = None, **settings: Any) -> Enabled:
    """Decodes a model's tokens through the library from now on; prompts as well, with ``rows="all"``.

    Args:
        model: a causal language model of transformers, on a CPU or a GPU.
        config: ``adamas.Config``; None: that of the environment, with ``settings`` on top (``budget=128``,
            ``policy="quest"``, ...).
        threads: that work on a step on a CPU; None: as many as PyTorch has.

    Returns: ``Enabled``: ``stats``, ``disable()``; or a context manager.
    """
    if config is not None and settings:
        raise ValueError("settings go into the config that is given")
    disable(model)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _mask)
    config = config or Config.from_environment(**settings)
    model._adamas = Enabled(model, config, threads or torch.get_num_threads())
    return model._adamas


def disable(model: Any) -> None:
    """The model attends as it did before."""
    enabled = getattr(model, "_adamas", None)
    if enabled is not None:
        enabled.disable()


def stats(model: Any) -> dict[str, float]:
    """Counts of all steps since ``enable``: ``Enabled.stats``."""
    return dict(model._adamas.stats)
