"""Writes small GGUF files: metadata and the names of tensors, whose data is one block of zeros."""

import struct

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_FORMATS = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _type_of(value):
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return INT32 if value < 0 else UINT32
    return FLOAT32 if isinstance(value, float) else STRING


def _plain(value):
    kind = _type_of(value)
    return text(value) if kind == STRING else struct.pack(_FORMATS[kind], value)


def _value(value):
    if isinstance(value, list):
        kind = _type_of(value[0])
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(map(_plain, value))
    return struct.pack("<I", _type_of(value)) + _plain(value)


def gguf(values, tensors=()):
    """The bytes of a file with those keys and tensors, each tensor 32 floats."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    head += b"".join(text(key) + _value(value) for key, value in values.items())
    for index, name in enumerate(tensors):
        head += text(name) + struct.pack("<IQIQ", 1, 32, 0, index * 128)
    return head + bytes(-len(head) % 32) + bytes(128 * len(tensors))


def model(architecture="llama", layers=4, tensors=None, **values):
    """A model of 8 query heads, 2 KV heads, head_dim 64; `attention__key_length=80` sets attention.key_length."""
    keys = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": 512,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
    } | {key.replace("__", "."): value for key, value in values.items()}
    if tensors is None:
        tensors = [f"blk.{i}.attn_{part}.weight" for i in range(layers) for part in "qkv"]
    everything = {"general.architecture": architecture, "general.name": "small"}
    everything |= {f"{architecture}.{key}": value for key, value in keys.items() if value is not None}
    return gguf(everything, tensors)
