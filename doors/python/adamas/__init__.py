"""Adamas: sparse attention for long contexts, without training.

Codes of 2 bits estimate what every key matters to a query; what may matter is read in full, the rest counts through the means
of its blocks. ``Cache`` holds the codes of one layer, ``Plan.step`` is attention on them.

>>> import numpy as np
>>> k, v, q = (np.random.default_rng(i).standard_normal((1, 2, 4096, 64), np.float32) for i in range(3))
>>> cache, plan = Cache(kv_heads=2, head_dim=64, capacity=4096), Plan(8, 2, 64, max_tokens=4096)
>>> cache.append(0, 0, 4096, k, v)
>>> result = plan.step(cache, q[:, 0, :8].reshape(1, 1, 8, 64), k, v)
>>> result.out.shape, int(result.stats["rows_sparse"])
((1, 1, 8, 64), 1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._attention import Cache, Plan, Result
from ._config import Config, settings
from ._library import HEAD_DIMS, Error, lib, text
from ._rows import Pages
from ._stages import Scores, attend, select

if TYPE_CHECKING:
    from .transformers import disable, enable, stats

__all__ = [
    "Cache",
    "Config",
    "Error",
    "Pages",
    "Plan",
    "Result",
    "Scores",
    "attend",
    "disable",
    "enable",
    "gpu_names",
    "gpu_reason",
    "head_dims",
    "select",
    "settings",
    "stats",
    "version",
]


def __getattr__(name: str) -> Any:
    """What needs PyTorch and transformers is there where they are."""
    if name in ("enable", "disable", "stats"):
        from . import transformers

        return getattr(transformers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def version() -> str:
    """The library's version."""
    return text(lib.adamas_version())


__version__ = version()


def head_dims() -> list[int]:
    """The head_dims that are served, ascending."""
    return list(HEAD_DIMS)


def gpu_names() -> list[str]:
    """The GPUs that can be used; none where there is no driver, or the library was built without CUDA."""
    return [text(lib.adamas_gpu_name(i)) for i in range(lib.adamas_gpu_count())]


def gpu_reason() -> str:
    """Why there is none; nothing where there is one."""
    return text(lib.adamas_gpu_reason())
