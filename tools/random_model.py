#!/usr/bin/env python3
"""Writes a model of random weights in the shape of Qwen2.5-1.5B (12/2 heads x 128), for measuring speed where the real one is not at
hand: random_model.py MODEL.gguf [LAYERS]. About 0.9 GB as Q4_0 with 28 layers. It has no vocabulary, only numbers for tokens."""

import struct
import sys

import numpy as np

EMBEDDING, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 1536, 8960, 12, 2, 128, 151936
F32, Q4_0 = 0, 2
UINT32, FLOAT32, STRING = 4, 6, 8


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key, value):
    kind, data = {
        int: lambda: (UINT32, struct.pack("<I", value)),
        float: lambda: (FLOAT32, struct.pack("<f", value)),
        str: lambda: (STRING, text(value)),
    }[type(value)]()
    return text(key) + struct.pack("<I", kind) + data


def tensors(layers):
    """Name, shape with the innermost dimension first, type."""
    yield "token_embd.weight", (EMBEDDING, VOCABULARY), Q4_0
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", (EMBEDDING,), F32
        for part, rows in ("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM):
            yield f"blk.{i}.attn_{part}.weight", (EMBEDDING, rows), Q4_0
            yield f"blk.{i}.attn_{part}.bias", (rows,), F32
        yield f"blk.{i}.attn_output.weight", (HEADS * HEAD_DIM, EMBEDDING), Q4_0
        yield f"blk.{i}.ffn_norm.weight", (EMBEDDING,), F32
        yield f"blk.{i}.ffn_gate.weight", (EMBEDDING, FEED_FORWARD), Q4_0
        yield f"blk.{i}.ffn_up.weight", (EMBEDDING, FEED_FORWARD), Q4_0
        yield f"blk.{i}.ffn_down.weight", (FEED_FORWARD, EMBEDDING), Q4_0
    yield "output_norm.weight", (EMBEDDING,), F32


def data(random, name, shape, kind):
    count = int(np.prod(shape))
    if kind == F32:
        return np.full(count, name.endswith("norm.weight"), np.float32).tobytes()
    blocks = np.empty((count // 32, 18), np.uint8)  # an f16 scale, 32 nibbles around 8
    length = 1.6 if "attn_q" in name or "attn_k" in name else 1.0  # of a row; scores then deviate by 2.5, and some tokens matter
    blocks[:, :2] = np.array([0.23 * length / shape[0] ** 0.5], np.float16).view(np.uint8)
    lower, upper = random.integers(1, 16, (2, count // 32, 16), np.uint8)  # -7 to 7: a mean would add up from layer to layer
    blocks[:, 2:] = lower | upper << 4
    return blocks.tobytes()


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    layers = int(sys.argv[2]) if len(sys.argv) > 2 else 28
    random = np.random.default_rng(1)
    keys = {
        "general.architecture": "qwen2",
        "general.name": "random weights in the shape of Qwen2.5-1.5B",
        "qwen2.block_count": layers,
        "qwen2.context_length": 32768,
        "qwen2.embedding_length": EMBEDDING,
        "qwen2.feed_forward_length": FEED_FORWARD,
        "qwen2.attention.head_count": HEADS,
        "qwen2.attention.head_count_kv": KV_HEADS,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen2.rope.freq_base": 1e6,
        "qwen2.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }
    every = list(tensors(layers))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(every), len(keys)) + b"".join(entry(*item) for item in keys.items())
    at = 0
    for name, shape, kind in every:
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, at)
        at += (int(np.prod(shape)) * 4 if kind == F32 else int(np.prod(shape)) // 32 * 18) + 31 & ~31
    with open(sys.argv[1], "wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for name, shape, kind in every:
            raw = data(random, name, shape, kind)
            file.write(raw + bytes(-len(raw) % 32))


if __name__ == "__main__":
    main()
