"""Where codes are made and steps run: the CPU, or a GPU and the stream of PyTorch that is current there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ._library import Error, ffi, lib, text

_NUMBERS = {"cpu": "CPU", "reference": "REFERENCE", "cuda": "CUDA"}


class Device:
    """Args: name: "cpu", "reference" (slow, and the definition), "cuda" (the current GPU) or "cuda:1"; or a ``torch.device``."""

    def __init__(self, name: Any) -> None:
        kind, _, index = str(name).partition(":")
        if kind not in _NUMBERS or (index and (kind != "cuda" or not index.isdigit())):
            raise ValueError(f"device {name!r}; there are {', '.join(map(repr, _NUMBERS))}")
        self.kind, self.number = kind, getattr(lib, "ADAMAS_DEVICE_" + _NUMBERS[kind])
        self.is_gpu = kind == "cuda"
        self.name = kind
        if self.is_gpu:
            if lib.adamas_gpu_count() == 0:
                raise Error(f"device cuda: {text(lib.adamas_gpu_reason())}", "unsupported")
            import torch

            self.name = f"cuda:{index or torch.cuda.current_device()}"

    def holds(self, array: Any) -> bool:
        """Whether an array of NumPy's or a tensor lies in its memory."""
        where = str(array.device) if hasattr(array, "data_ptr") else "cpu"
        return where == (self.name if self.is_gpu else "cpu")

    def current(self) -> Any:
        """A context in which it is the thread's GPU, which the library asks the driver for."""
        if not self.is_gpu:
            return contextlib.nullcontext()
        import torch

        return torch.cuda.device(self.name)

    def stream(self) -> Any:
        """PyTorch's current stream there, a ``cudaStream_t``; NULL on a CPU."""
        if not self.is_gpu:
            return ffi.NULL
        import torch

        return ffi.cast("void *", torch.cuda.current_stream(self.name).cuda_stream)

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """A context for calls that work in the default stream: after what the current one has, and before what it gets."""
        if not self.is_gpu:
            yield
            return
        import torch

        with torch.cuda.device(self.name):
            current, default = torch.cuda.current_stream(), torch.cuda.default_stream()
            default.wait_stream(current)
            yield
            current.wait_stream(default)
