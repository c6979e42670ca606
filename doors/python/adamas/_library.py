"""The library, through its C header: structs and functions are what the header says, read by cffi."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import cffi

_HERE = Path(__file__).resolve().parent


def _find(name: str, variable: str, *elsewhere: Path) -> Path:
    """A file of the package; of a checkout, when the package is used from there; or what a variable of the environment names."""
    given = os.environ.get(variable)
    places = [Path(given)] if given else [_HERE / name, *elsewhere]
    for place in places:
        if place.exists():
            return place
    raise ImportError(f"{name} is not there: {', '.join(map(str, places))}. {variable} may name it.")


def _declarations(header: str) -> str:
    """What cffi reads of a C header: no preprocessor, no functions with a body."""
    text = re.sub(r"static inline .*?\n}\n", "", header, flags=re.S)
    text = re.sub(r'extern "C" \{.*?#endif|#ifdef __cplusplus.*?#endif', "", text, flags=re.S)
    constants = re.findall(r"^#define (ADAMAS_\w+) \(?(-?\d+)\)?(?:\s|$)", text, flags=re.M)
    text = re.sub(r"^#.*$", "", text, flags=re.M).replace("ADAMAS_API ", "")
    return text + "".join(f"\n#define {name} {value}" for name, value in constants)


_checkout = _HERE.parents[2]
ffi = cffi.FFI()
ffi.cdef(_declarations(_find("adamas.h", "ADAMAS_HEADER", _checkout / "include/adamas/adamas.h").read_text(encoding="utf-8")))
lib = ffi.dlopen(str(_find("libadamas.so", "ADAMAS_LIBRARY", _checkout / "build/lib/libadamas.so")))


HEAD_DIMS = tuple(lib.adamas_head_dim(i) for i in range(lib.adamas_head_dim_count()))


class Error(RuntimeError):
    """What the library refuses or could not do. ``status`` is its name: ``"invalid argument"``, ``"out of range"``, ..."""

    def __init__(self, sentence: str, status: str) -> None:
        super().__init__(sentence)
        self.status = status


Error.__module__ = "adamas"


def text(value: Any) -> str:
    return ffi.string(value).decode("utf-8")


def check(status: int) -> None:
    if status != lib.ADAMAS_OK:
        raise Error(text(lib.adamas_last_error()), text(lib.adamas_status_name(status)))


def struct(name: str) -> Any:
    """A struct of the header, all zeros but for its size."""
    value = ffi.new(f"{name} *")
    value.struct_size = ffi.sizeof(name)
    return value


def create(kind: str, config: Any, params: Any) -> Any:
    """An ``adamas_cache`` or an ``adamas_plan``, destroyed when nobody refers to it any more."""
    made = ffi.new(f"adamas_{kind} **")
    check(getattr(lib, f"adamas_{kind}_create")(config, params, made))
    return ffi.gc(made[0], getattr(lib, f"adamas_{kind}_destroy"))
