#!/usr/bin/env python3
"""What `adamas eval perplexity` must say, computed without any of our code: a Llama in NumPy whose attention follows the formulas
of docs/ and src/*/*.h word by word, in matrices over all query rows at once. Its figures are in reference.json, which the test
engine_eval_reference compares with the command's. To make them anew (minutes; NumPy and gguf from PyPI):

    python3 reference.py MODEL.gguf TEXT llama-tokenize > reference.json

TEXT is read from byte 1,000,000 on, 24,000 bytes, as the test does.
"""

import json
import re
import subprocess
import sys
import tempfile

import numpy as np

CONTEXT, SCORE_FROM, BUDGET, SINKS, BLOCK, PAGE = 1024, 512, 64, 4, 64, 16

CASES = {  # name: the flags of `adamas eval perplexity` beside --budget 64 --min-context 0
    "streaming": ["--policy", "streaming"],
    "quest": ["--policy", "quest"],
    "oracle": ["--policy", "oracle"],
    "dot": ["--estimator", "dot", "--sketch", "0", "--tail", "0", "--rerank", "0", "--max-noise", "0"],
    "manhattan": ["--estimator", "manhattan", "--sketch", "0", "--tail", "0", "--rerank", "0", "--max-noise", "0"],
    "paper": ["--preset", "paper"],
    "tail": ["--sketch", "0", "--rerank", "0"],
    "sketch": ["--sketch", "128", "--rerank", "0"],
    "tiers": [],
}
TIERS = ("tail", "sketch", "tiers")


class Model:
    def __init__(self, path):
        from gguf import GGUFReader
        from gguf.quants import dequantize

        file = GGUFReader(path)
        of = lambda key: file.fields["llama." + key].contents()
        self.layers, self.q_heads, self.kv_heads = of("block_count"), of("attention.head_count"), of("attention.head_count_kv")
        self.epsilon, self.base = of("attention.layer_norm_rms_epsilon"), of("rope.freq_base")
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in file.tensors}
        self.head_dim = self.w["blk.0.attn_q.weight"].shape[0] // self.q_heads

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * self.w[name]

    def turn(self, x):  # [rows, heads, head_dim], neighbours are pairs
        angle = np.arange(len(x))[:, None] * self.base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        cos, sin = np.cos(angle)[:, None].astype(np.float32), np.sin(angle)[:, None].astype(np.float32)
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    def logits(self, tokens, attention):
        """attention(layer, q, k, v) of one query head: [rows, head_dim] each, out [rows, head_dim]."""
        x = self.w["token_embd.weight"][tokens]
        f16 = lambda t: t.astype(np.float16).astype(np.float32)  # as the KV cache keeps them
        for layer in range(self.layers):
            w = lambda name: self.w[f"blk.{layer}.{name}.weight"]
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q = self.turn((h @ w("attn_q").T).reshape(len(x), self.q_heads, -1))
            k = f16(self.turn((h @ w("attn_k").T).reshape(len(x), self.kv_heads, -1)))
            v = f16((h @ w("attn_v").T).reshape(len(x), self.kv_heads, -1))
            group = self.q_heads // self.kv_heads
            out = [attention(layer, q[:, i], k[:, i // group], v[:, i // group]) for i in range(self.q_heads)]
            x = x + np.concatenate(out, axis=-1) @ w("attn_output").T
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            gate = h @ w("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        return self.norm(x[SCORE_FROM:], "output_norm.weight") @ self.w["token_embd.weight"].T


def hadamard(n):
    h = np.ones((1, 1), dtype=np.float32)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(np.float32(n))


class Codes:
    """docs/codes.md, of all blocks of one head: levels -3 -1 1 3, and by block the centre and sigma."""

    def __init__(self, rows, paper=False):
        n, dim = rows.shape
        x = rows @ hadamard(dim)
        blocks = -(-n // BLOCK)
        self.centre, self.sigma = np.zeros((blocks, dim), np.float32), np.full(blocks, 10 / 0.98, np.float32)
        residual = x.copy()
        for b in range(0 if paper else blocks):
            own = slice(b * BLOCK, min(n, (b + 1) * BLOCK))
            counted = x[own][SINKS:] if b == 0 else x[own]
            mean = counted.mean(axis=0)
            unit = np.abs(mean).max() / 32767
            self.centre[b] = np.rint(mean / unit) * unit
            self.sigma[b] = np.sqrt(np.mean((counted - self.centre[b]) ** 2))
            residual[own] -= self.centre[b]
        self.of = np.arange(n) // BLOCK  # a token's block
        t = (0.98 * self.sigma)[self.of][:, None]
        self.level = 2 * ((residual > -t).astype(int) + (residual > 0) + (residual > t)) - 3
        self.mean = self.centre @ hadamard(dim)  # of every block
        self.detail = (0.498 * self.sigma)[self.of][:, None] * (self.level @ hadamard(dim))  # of every token, about its block's mean


def estimate(q, codes, estimator, paper):
    """src/estimate/estimate.h: integer scores [rows, tokens], and by row unit, highest centre and mean square sigma."""
    n, dim = q.shape
    y = q @ hadamard(dim)
    m = np.abs(y).max(axis=1)
    rms = np.sqrt(np.mean(y * y, axis=1))
    if estimator == "dot":
        inner = np.rint(21 * y / m[:, None]) @ codes.level.T
    else:
        t = 10 if paper else (0.98 * rms)[:, None]
        level = 2 * ((y > -t).astype(int) + (y > 0) + (y > t)) - 3
        distance = np.zeros((n, n))
        for d in range(dim):
            distance += np.abs(level[:, d][:, None] - codes.level[:, d][None, :]) / 2
        inner = np.rint(33.504 * dim) - 32 * distance
    centre = y @ codes.centre.T  # [rows, blocks]
    score, units, highests, squares = np.empty((n, n)), np.empty(n), np.empty(n), np.empty(n)
    for row in range(n):
        seen = slice(0, row // BLOCK + 1)  # blocks
        sigma = codes.sigma[seen]
        exponents = np.sort(np.frexp(sigma)[1] - 1)
        reference = min(sigma.max(), 2.0 ** (exponents[(len(exponents) - 1) // 2] + 4))
        unit = m[row] / 21 * 0.498 * reference if estimator == "dot" else 0.79 * rms[row] * reference / 32
        highest = centre[row, seen].max()
        a = np.minimum(32767, np.rint(32767 * codes.sigma / reference))
        c = np.maximum(-16639, np.rint((centre[row] - highest) / unit))
        score[row] = np.floor((inner[row] * a[codes.of] + 2**14) / 2**15) + c[codes.of]
        units[row], highests[row] = unit, highest
        squares[row] = np.mean(np.minimum(sigma, reference) ** 2)
    return score, units, highests, squares


def best(score, count):
    """True for the `count` highest of a row, of equal ones the last."""
    order = np.lexsort((np.arange(len(score)), score))
    chosen = np.zeros(len(score), bool)
    chosen[order[len(score) - min(count, len(score)):]] = True
    return chosen


def attention_of(case):
    paper = case == "paper"

    def attention(layer, q, k, v):
        n, dim = q.shape
        scale = 1 / np.sqrt(dim)
        exact = (q @ k.T * scale).astype(np.float64)
        weight = np.zeros((2, n, n))  # of the value, of its detail in codes
        mean_weight = np.zeros((n, -(-n // BLOCK)))  # of the blocks' means
        if case in ("dot", "manhattan", "paper", *TIERS):
            keys = Codes(k, paper)
            score, unit, highest, squares = estimate(q, keys, "manhattan" if case in ("manhattan", "paper") else "dot", paper)
        if case == "quest":
            pages = -(-n // PAGE)
            low = np.stack([k[p * PAGE:(p + 1) * PAGE].min(axis=0) for p in range(pages)])
            high = np.stack([k[p * PAGE:(p + 1) * PAGE].max(axis=0) for p in range(pages)])
            bound = np.maximum(q, 0) @ high.T + np.minimum(q, 0) @ low.T
        for row in range(n):
            seen = row + 1
            s = exact[row, :seen]
            noise = 0.1188 * (q[row] @ q[row]) * squares[row] * scale**2 if case in TIERS else 0
            if case == "full" or seen <= BUDGET or (paper and layer < 2) or noise > 8:
                weight[0, row, :seen] = np.exp(s - s.max())
                continue
            if case == "streaming":
                chosen = np.zeros(seen, bool)
                chosen[:SINKS] = chosen[seen - (BUDGET - SINKS):] = True
            elif case == "oracle":
                chosen = best(s, BUDGET)
            elif case == "quest":
                newest = row // PAGE
                chosen_pages = best(np.append(bound[row, :newest], np.inf), BUDGET // PAGE)
                chosen = chosen_pages[np.arange(seen) // PAGE]
            else:
                own = score[row, :seen].copy()
                always = np.zeros(seen, bool)
                always[: 0 if paper else SINKS] = True
                own[always] = np.inf
                chosen = best(own, BUDGET)
            if case not in TIERS:
                weight[0, row, :seen][chosen] = np.exp(s[chosen] - s[chosen].max())
                continue

            # src/step/tiers.h, src/attend/sketch.h
            guess = scale * (unit[row] * score[row, :seen] + highest[row])
            top = guess[~always].max()
            estimated = np.where(always, 0, np.exp(guess - top))
            reach = top + np.log(3e-4 * estimated.sum()) - np.sqrt(noise)
            sketch = {"tail": 0, "sketch": 128, "tiers": 1024}[case]
            picked = best(own, int(np.clip((always | (guess >= reach)).sum(), BUDGET, BUDGET + sketch)))
            candidate = picked if case == "tiers" else best(own, BUDGET)
            most = s[candidate].max()
            rank = np.where(candidate, np.rint(np.maximum(-32767, 1000 * (s - most))), -np.inf)
            rank[always] = np.inf
            chosen = best(rank, BUDGET)
            known = candidate & ~always
            w = np.exp(s - most)
            low = known & (estimated <= 2 * estimated[known].min())
            low = low if low.sum() >= 16 else known
            gain = min(w[low].sum() / estimated[low].sum(), 5 * np.exp(min(top - most, 30)))
            weight[0, row, :seen] = np.where(chosen, w, 0)
            other = np.where(candidate, np.where(chosen, 0, w), gain * estimated)  # of the second tier and the tail
            block = np.arange(seen) // BLOCK
            mixed = (block == row // BLOCK) & (min(n, (row // BLOCK + 1) * BLOCK) != seen)
            level = candidate & ~chosen | ~candidate & (mixed | picked)
            weight[1, row, :seen] = np.where(level, other, 0)
            of_block = np.bincount(block, other)
            small = of_block <= of_block.mean() / 8  # their weight goes to the others
            of_block = np.where(small, 0, of_block * of_block.sum() / of_block[~small].sum())
            mean_weight[row, :len(of_block)] = of_block
        out = weight[0] @ v
        if case in TIERS:
            values = Codes(v)
            out += weight[1] @ values.detail + mean_weight @ values.mean
        return (out / (weight[0].sum(axis=1) + mean_weight.sum(axis=1))[:, None]).astype(np.float32)

    return attention


def main():
    model_file, text_file, tokenize = sys.argv[1:4]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as piece:
        with open(text_file, encoding="utf-8") as text:
            piece.write(text.read()[1_000_000:1_024_000])
        piece.flush()
        said = subprocess.run([tokenize, "-m", model_file, "-f", piece.name, "--ids", "--log-disable"], capture_output=True, text=True, check=True)
    tokens = json.loads(re.search(r"\[[0-9, ]+\]", said.stdout).group())[:CONTEXT]
    model = Model(model_file)
    target = np.array(tokens[SCORE_FROM + 1:])
    table, full = {}, None
    for case in ["full", *(sys.argv[4:] or CASES)]:
        logits = model.logits(np.array(tokens[:-1]), attention_of(case)).astype(np.float64)
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        full = log_p if full is None else full
        loss = -log_p[np.arange(len(target)), target].mean()
        table[case] = {"flags": CASES.get(case), "perplexity": float(np.exp(loss)),
                       "ratio": float(np.exp(loss + full[np.arange(len(target)), target].mean())),
                       "kl": float((np.exp(full) * (full - log_p)).sum(axis=1).mean())}
        print(case, table[case], file=sys.stderr, flush=True)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
