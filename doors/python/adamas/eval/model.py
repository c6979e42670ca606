"""A causal language model of transformers: how it is loaded, tokenizes, and reads tokens piece by piece."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..transformers import cache_parameter

PIECE = 512  # rows that are read at once where no logits are wanted
_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


class Model:
    """A model and its tokenizer.

    Args:
        name: a name or a folder, as ``from_pretrained`` takes it, or a file in the format GGUF.
        dtype: of the weights and of K and V.
        threads: of PyTorch and of the library; None: as many as there are processors.
    """

    def __init__(self, name: str, dtype: str = "float32", threads: int | None = None) -> None:
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        path = Path(name)
        source: dict[str, Any] = {}
        where = name
        if path.suffix == ".gguf":
            where, source = str(path.parent), {"gguf_file": path.name}
        transformers.logging.disable_progress_bar()
        logging.getLogger("transformers.tokenization_utils_base").setLevel(
            logging.ERROR
        )  # texts are longer than a model's context
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(where, **source)
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=getattr(torch, dtype), attn_implementation="sdpa", **source
            ).eval()
        except (OSError, ValueError, ImportError) as error:
            raise SystemExit(f"adamas.eval: --model {name}: {str(error).strip().splitlines()[0]}") from None
        self.name = path.name.removesuffix(".gguf")
        self.dtype = dtype
        self.identity = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else [name]
        self.identity += [dtype, transformers.__version__]
        self._parameter = cache_parameter(self.model)

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def context(self) -> int:
        """Tokens that the model was made for."""
        return self.model.config.get_text_config().max_position_embeddings

    @property
    def rows_with_logits(self) -> int:
        """Rows with 64 MiB of logits: as many as ``adamas eval`` reads at once, for blocks at the end of a batch see later rows."""
        return min(max((64 << 20) // (self.vocabulary * 4) // 64 * 64, 64), 512)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    @property
    def first_token(self) -> int | None:
        """The token that the model wants before a text, if it wants one."""
        first = self.tokenizer("").input_ids[:1]
        return first[0] if first and first[0] == self.tokenizer.bos_token_id else None

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {end for end in [*ends, self.tokenizer.eos_token_id] if end is not None}

    def as_question(self, text: str) -> str:
        """The text as a user's message, as the model's chat template has it; the answer comes next."""
        if self.tokenizer.chat_template is None:
            raise SystemExit(f"adamas.eval: {self.name} has no chat template; leave out --chat")
        return self.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)

    def cache(self) -> Any:
        return transformers.DynamicCache(config=self.model.config)

    @torch.no_grad()
    def read(self, tokens: Sequence[int], cache: Any) -> None:
        """Rows [tokens] go into the cache, nothing is predicted."""
        for first in range(0, len(tokens), PIECE):
            self._forward(tokens[first : first + PIECE], cache, logits_to_keep=1)

    @torch.no_grad()
    def predict(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        """As ``read``, in one piece. Returns: float32 [tokens, vocabulary], the logarithm of what comes after each."""
        return self._forward(tokens, cache)[0].float().log_softmax(-1)

    def _forward(self, tokens: Sequence[int], cache: Any, **more: Any) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        return self.model(ids, **{self._parameter: cache}, **more).logits


def fork(cache: Any) -> Any:
    """A cache that goes on from this one, which stays as it is. Layers that grow by concatenation never write to the rows that they
    have, so both share them."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) if type(layer) in _GROWING else copy.deepcopy(layer) for layer in cache.layers]
    return other
