"""Arrays as the library takes them: an address, a type, strides in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._device import Device
from ._library import ffi, lib

# Their names in PyTorch and in ml_dtypes.
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}


def is_tensor(array: Any) -> bool:
    return hasattr(array, "data_ptr")


class View:
    """An array of NumPy's or a tensor of PyTorch's: where it lies."""

    def __init__(self, array: Any, name: str, device: Device) -> None:
        if not is_tensor(array):
            array = np.asarray(array)
        if not device.holds(array):
            where = array.device if is_tensor(array) else "an array of NumPy's"
            raise ValueError(f"{name}: it is on {where}; it has to be on {device.name if device.is_gpu else 'cpu'}")
        self.keep, self.name = array, name
        if is_tensor(array):
            self.address, self.dtype_name = array.data_ptr(), str(array.dtype)[len("torch.") :]
            self.shape, self.itemsize = tuple(array.shape), array.element_size()
            self.strides = tuple(stride * self.itemsize for stride in array.stride())
        else:
            self.address, self.dtype_name = array.ctypes.data, array.dtype.name
            self.shape, self.itemsize, self.strides = array.shape, array.itemsize, array.strides

    @property
    def dtype(self) -> int:
        """The library's number of the element type."""
        if self.dtype_name not in _DTYPES:
            raise TypeError(f"{self.name}: elements are {self.dtype_name}; there are {', '.join(_DTYPES)}")
        return getattr(lib, "ADAMAS_" + _DTYPES[self.dtype_name])

    @property
    def pointer(self) -> Any:
        return ffi.cast("void *", self.address)

    def empty(self, *shape: int) -> tuple[Any, Any]:
        """float32 of a shape, of NumPy's or of PyTorch's as this one is; and a pointer to it."""
        if is_tensor(self.keep):
            import torch

            tensor = torch.empty(shape, dtype=torch.float32, device=self.keep.device)
            return tensor, ffi.cast("float *", tensor.data_ptr())
        array = np.empty(shape, np.float32)
        return array, ffi.cast("float *", array.ctypes.data)


def whole(array: Any, name: str, shape: Sequence[int | None], device: Device) -> View:
    """The view of an array of this shape whose last dimension lies in line. None in ``shape`` is any size."""
    view = View(array, name, device)
    if len(view.shape) != len(shape) or any(want is not None and want != have for want, have in zip(shape, view.shape)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: shape {view.shape}; it has to be ({wanted})")
    if view.shape[-1] > 1 and view.strides[-1] != view.itemsize:
        raise ValueError(f"{name}: the last dimension has to lie in line")
    return view


def integers(values: Any, name: str, count: int | None, device: Device) -> tuple[Any, Any]:
    """A contiguous array of int64 where the device reads it, or NULL of None; with what keeps it alive. A tensor of int64 on
    the device is taken as it is."""
    if values is None:
        return ffi.NULL, None
    array: Any
    if device.is_gpu or is_tensor(values):
        import torch

        array = values if is_tensor(values) else torch.tensor(list(values), dtype=torch.int64, device=device.name)
        if not device.holds(array):
            raise ValueError(f"{name}: it is on {array.device}; it has to be on {device.name if device.is_gpu else 'cpu'}")
        array = array.to(torch.int64).contiguous()
        address = array.data_ptr()
    else:
        array = np.ascontiguousarray(list(values), dtype=np.int64)
        address = array.ctypes.data
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise ValueError(f"{name}: shape {tuple(array.shape)}; it has to be ({'any' if count is None else count},)")
    return ffi.cast("int64_t *", address), array


class Pages:
    """Where the pages of K and V are: ``table[s, i]`` is the page of tokens [i * page_tokens, (i + 1) * page_tokens) of
    sequence s. K and V are [pages, kv_heads, page_tokens, head_dim] then.

    Args:
        table: int32 [sequences, pages of a sequence]; it is read when a call runs, and may change between calls. A tensor
            of int32 is taken as it is; on a GPU it has to be one, there.
        page_tokens: a power of two.
    """

    def __init__(self, table: Any, page_tokens: int) -> None:
        self.table = table if is_tensor(table) else np.ascontiguousarray(table, dtype=np.int32)
        if self.table.ndim != 2:
            raise ValueError(f"table: shape {tuple(self.table.shape)}; it has to be (sequences, pages of a sequence)")
        self.page_tokens = int(page_tokens)

    def native(self, count: int, device: Device) -> Any:
        view = whole(self.table, "table", (None, None), device)
        if view.dtype_name != "int32":
            raise TypeError(f"table: elements are {view.dtype_name}; they have to be int32")
        pages = ffi.new("adamas_pages *")
        pages.struct_size = ffi.sizeof("adamas_pages")
        pages.page_tokens = self.page_tokens
        pages.count = count
        pages.table = ffi.cast("int32_t *", view.address)
        pages.stride = view.strides[0] // view.itemsize
        return pages


def rows_of(
    array: Any,
    name: str,
    kv_heads: int,
    head_dim: int,
    device: Device,
    pages: Pages | None = None,
    layout: str = "HND",
    first: int = 0,
) -> tuple[Any, list[Any]]:
    """K or V, [sequences or pages, kv_heads, tokens, head_dim] (``layout="HND"``) or [..., tokens, kv_heads, head_dim]
    ("NHD"), as ``adamas_rows``; with what has to live as long as it is used. first: which sequence the first one is."""
    if layout not in ("HND", "NHD"):
        raise ValueError(f"layout {layout!r}; there are 'HND' and 'NHD'")
    hnd = layout == "HND"
    tokens = pages.page_tokens if pages is not None else None
    view = whole(array, name, (None, kv_heads, tokens, head_dim) if hnd else (None, tokens, kv_heads, head_dim), device)
    native = ffi.new("adamas_rows *")
    native.data = view.pointer
    native.dtype = view.dtype
    native.stride_head, native.stride_token = view.strides[1:3] if hnd else view.strides[2:0:-1]
    keep = [view, native]
    if pages is None:
        native.stride_sequence = view.strides[0]
        native.data = ffi.cast("void *", view.address - first * view.strides[0])
    else:
        native.stride_page = view.strides[0]
        owner = pages.native(view.shape[0], device)  # what native.pages gives does not own it
        native.pages = owner
        keep.append(owner)
    return native, keep
