"""Quantised KV caches, K and V of any type: the engine rotates the rows that it quantises, and its queries, which only the nodes of its
graph tell. Our dense steps write the same text as the plain engine; sparse ones read what was stored and know what was rotated."""

from pathlib import Path

from engine import MODEL, REFRAIN, TEXT, check, complete, need, text_file

need(MODEL, TEXT)
prompt = text_file("quantised.txt", 1000, ending=REFRAIN * 8 + "\n")  # about 480 tokens; the refrain makes certain what follows
steps = 15 * 30  # after the prompt: 16 tokens, 30 layers


def answer(k, v, *arguments, **settings):
    return complete(prompt, "-ctk", k, "-ctv", v, *arguments, tokens=16, context=1024, **settings)


def check_sparse(sparse, k, v, budget=None):
    read = sparse["tokens_selected"] / sparse["sparse_rows"]
    check(sparse.code == 0 and sparse["sparse_rows"] >= steps, f"K {k}, V {v}: every step was sparse")
    check((read == budget if budget else read < sparse["tokens_visible"] / sparse["sparse_rows"]) and sparse["stale_rows"] == 0,
          f"... of {read:.0f} tokens, with no stale row")
    check(sparse["rotated_keys"] == (sparse["steps"] if k != "f16" else 0), "... and whether the engine rotated its keys is known")


for k, v in (("q5_0", "q5_0"), ("q4_0", "q4_0"), ("iq4_nl", "iq4_nl"), ("q5_1", "f16"), ("f16", "q4_1")):
    check_sparse(answer(k, v, min_context=256), k, v)
check_sparse(answer("q8_0", "q4_0", budget=128, min_context=256), "q8_0", "q4_0", budget=128)

Path("prompt.cache").unlink(missing_ok=True)
cached = ("q8_0", "q8_0", "--prompt-cache", "prompt.cache")
answer(*cached, backend=False)
plain = answer(*cached, "--prompt-cache-ro", backend=False)
full = answer(*cached, "--prompt-cache-ro", policy="full", min_context=256)
check(len(plain.out) > 20 and full.out == plain.out, "policy full, q8_0: the text is the plain engine's")
check(full["dense_rows"] >= steps, "... and every step was our dense one")
dense = answer(*cached, "--prompt-cache-ro", budget=1000000, min_context=256)
check(dense["steps"] == 0 and dense.out == plain.out, "budget above the context, q8_0: attention is left to the engine")
sparse = answer(*cached, "--prompt-cache-ro", min_context=256)
check_sparse(sparse, "q8_0", "q8_0")
check(sparse.out == plain.out, "... and wrote the same text, from a restored cache")
