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

CONTEXT, SCORE_FROM, BUDGET, SINKS, BLOCK, PAGE, GROUP = 1024, 512, 64, 4, 64, 16, 16

FIXED = ["--budget", str(BUDGET)]
CASES = {  # name: the flags of `adamas eval perplexity` beside --min-context 0
    "streaming": [*FIXED, "--policy", "streaming"],
    "quest": [*FIXED, "--policy", "quest"],
    "oracle": [*FIXED, "--policy", "oracle"],
    "dot": [*FIXED, "--estimator", "dot", "--max-noise", "0"],
    "manhattan": [*FIXED, "--estimator", "manhattan", "--max-noise", "0"],
    "paper": ["--preset", "paper", *FIXED],
    "list": ["--estimator", "dot"],
    "list_of_few": ["--share", "0.004"],
    "list_manhattan": ["--estimator", "manhattan"],
}
SHARES = {"list": 0.0004, "list_of_few": 0.004, "list_manhattan": 0.0004}


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
        """attention(layer, queries, k, v) of one KV head: [rows, head_dim] each, the queries and outputs of its query heads as lists."""
        x = self.w["token_embd.weight"][tokens]
        f16 = lambda t: t.astype(np.float16).astype(np.float32)  # as the KV cache keeps them
        for layer in range(self.layers):
            w = lambda name: self.w[f"blk.{layer}.{name}.weight"]
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q = self.turn((h @ w("attn_q").T).reshape(len(x), self.q_heads, -1))
            k = f16(self.turn((h @ w("attn_k").T).reshape(len(x), self.kv_heads, -1)))
            v = f16((h @ w("attn_v").T).reshape(len(x), self.kv_heads, -1))
            group = self.q_heads // self.kv_heads
            out = [one for g in range(self.kv_heads)
                   for one in attention(layer, [q[:, g * group + i] for i in range(group)], k[:, g], v[:, g])]
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


def means(rows, coded):
    """docs/codes.md: the mean of every block's coded rows, as it is stored."""
    blocks = -(-len(rows) // BLOCK)
    mean = np.zeros((blocks, rows.shape[1]), np.float32)
    for b in range(blocks):
        own = np.arange(b * BLOCK, min(coded, (b + 1) * BLOCK))
        mean[b] = rows[own[SINKS:] if b == 0 else own].mean(axis=0)
        unit = np.abs(mean[b]).max() / 32767
        mean[b] = np.rint(mean[b] / unit) * unit
    return mean


class Codes:
    """docs/codes.md, of all blocks of one head: levels -3 -1 1 3, and by block the centre and sigma. Rows from `coded` on have none yet."""

    def __init__(self, rows, coded, paper=False):
        n, dim = rows.shape
        x = rows @ hadamard(dim)
        blocks = -(-n // BLOCK)
        self.centre, self.sigma = np.zeros((blocks, dim), np.float32), np.full(blocks, 10 / 0.98, np.float32)
        residual = x.copy()
        if not paper:
            self.centre = means(x, coded)
        for b in range(0 if paper else blocks):
            own = slice(b * BLOCK, min(coded, (b + 1) * BLOCK))
            counted = x[own][SINKS:] if b == 0 else x[own]
            self.sigma[b] = np.sqrt(np.mean((counted - self.centre[b]) ** 2))
            residual[own] -= self.centre[b]
        self.of = np.arange(n) // BLOCK  # a token's block
        t = (0.98 * self.sigma)[self.of][:, None]
        self.level = 2 * ((residual > -t).astype(int) + (residual > 0) + (residual > t)) - 3


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


EDGES = np.ldexp(1 + np.arange(1, 513) % 32 / 32, np.arange(1, 513) // 32 - 10) * np.log(2)


def edge(highest, k):
    """The highest of the edges, 32 for each doubling of their distance below the highest estimate, that k of the blocks' reach, or
    the last."""
    below = highest.max() - np.sort(highest)[-k] if k <= len(highest) else np.inf
    return highest.max() - EDGES[min(np.searchsorted(EDGES, below, "right"), 511)]


def weights_of_list(guess, bound, exact, listed, mixed):
    """src/rest/rest.h: of one head and row, the weights of listed values [tokens] and of the blocks' means."""
    seen = len(guess)
    block = np.arange(seen) // BLOCK
    max_exact, max_guess = exact[listed].max(), guess[np.isfinite(guess)].max()
    w = np.where(listed, np.exp(exact - max_exact), 0)
    estimated = np.exp(guess - max_guess)  # 0 of tokens without an estimate
    own = listed & (guess >= bound)
    low = own & (guess <= bound + np.log(2))
    expected = np.exp(min(max_guess - max_exact, 30))
    factor = min(w[low].sum() / estimated[low].sum(), 5 * expected) if low.any() else expected
    total = np.bincount(block, np.where(listed, 0, factor * estimated))
    total[mixed] = 0  # what is left of them counts as what was attended to
    low = low & ~mixed[block]
    if w[low].sum() > 0:
        more = np.where(low, w * total.sum() / (2 * w[low].sum()), 0)
        return w + more, total - np.bincount(block, more)
    return w, total


def attention_of(case):
    paper = case == "paper"
    estimator = "manhattan" if "manhattan" in case or paper else "dot"

    def attention(layer, queries, k, v):
        n, dim = k.shape
        scale = 1 / np.sqrt(dim)
        # Of the last block only whole groups of rows have codes; all, where a budget has no room for the others.
        coded = n - (n - (n - 1) // BLOCK * BLOCK) % GROUP if case in SHARES else n
        exacts = [(q @ k.T * scale).astype(np.float64) for q in queries]
        weights = [np.zeros((n, n)) for _ in queries]  # of the values
        mean_weights = [np.zeros((n, -(-n // BLOCK))) for _ in queries]
        if case in ("dot", "manhattan", "paper") or case in SHARES:
            keys = Codes(k, coded, paper)
            estimates = [estimate(q, keys, estimator, paper) for q in queries]
        if case == "quest":
            pages = -(-n // PAGE)
            low = np.stack([k[p * PAGE:(p + 1) * PAGE].min(axis=0) for p in range(pages)])
            high = np.stack([k[p * PAGE:(p + 1) * PAGE].max(axis=0) for p in range(pages)])
        for row in range(n):
            seen = row + 1
            listing = []  # heads whose candidates make the list: guess, bound, exact
            union = np.zeros(seen, bool)
            always = np.zeros(seen, bool)
            always[: 0 if paper else SINKS] = True
            if case in SHARES:
                always[coded:] = True
            mixed = np.zeros(row // BLOCK + 1, bool)
            mixed[-1] = min(coded, (row // BLOCK + 1) * BLOCK) > seen
            for head, q in enumerate(queries):
                s = exacts[head][row, :seen]
                if case in SHARES or case in ("dot", "manhattan", "paper"):
                    score, unit, highest, squares = (x[row] for x in estimates[head])
                distortion = 0.556 if estimator == "manhattan" else 0.1188
                noise = distortion * (q[row] @ q[row]) * squares * scale**2 if case in SHARES else 0
                if case == "full" or seen <= (128 if case in SHARES else BUDGET) or (paper and layer < 2) or noise > 8:
                    weights[head][row, :seen] = np.exp(s - s.max())
                    continue
                if case in SHARES:  # src/step/list.h
                    own = np.where(always, -np.inf, score[:seen])
                    guess = scale * (unit * own + highest)
                    total = np.exp(guess).sum() + np.exp(s[always]).sum()
                    least = np.log(SHARES[case] * total) - np.sqrt(noise)
                    blocks = -(-seen // BLOCK)
                    highest_of = np.maximum.reduceat(guess, np.arange(0, seen, BLOCK))
                    bound = min(max(least, edge(highest_of, max(1024, blocks // 4))),
                                edge(highest_of, 16 if blocks >= 64 else (blocks + 3) // 4))
                    candidate = guess >= np.where(mixed[np.arange(seen) // BLOCK], np.minimum(bound, least + np.log(1 / 8)), bound)
                    union |= candidate
                    listing.append((head, guess, bound, s))
                    continue
                if case == "streaming":
                    chosen = np.zeros(seen, bool)
                    chosen[:SINKS] = chosen[seen - (BUDGET - SINKS):] = True
                elif case == "oracle":
                    chosen = best(s, BUDGET)
                elif case == "quest":
                    newest = row // PAGE
                    bounds = np.maximum(q[row], 0) @ high.T + np.minimum(q[row], 0) @ low.T
                    chosen = best(np.append(bounds[:newest], np.inf), BUDGET // PAGE)[np.arange(seen) // PAGE]
                else:
                    chosen = best(np.where(always, np.inf, score[:seen]), BUDGET)
                weights[head][row, :seen][chosen] = np.exp(s[chosen] - s[chosen].max())
            for head, guess, bound, s in listing:
                values, of_means = weights_of_list(guess, bound, s, union | always, mixed)
                weights[head][row, :seen] = values
                mean_weights[head][row, :len(of_means)] = of_means
        mean = means(v, coded)
        return [((w @ v + m @ mean) / (w.sum(axis=1) + m.sum(axis=1))[:, None]).astype(np.float32) for w, m in zip(weights, mean_weights)]

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
