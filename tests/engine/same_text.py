"""With a budget above the context, and with our own dense attention, the engine writes the same greedy text as without us; with
128 it does read less."""

from pathlib import Path

from engine import MODEL, REFRAIN, TEXT, check, complete, need, text_file

need(MODEL, TEXT)
# About 1,100 tokens that end in a refrain: what follows is certain, so that no tie between two words decides (the engine adds
# values up in f16 and we in f32, which moves logits by some thousandths).
prompt = text_file("same_text.txt", 3600, ending=REFRAIN * 8 + "\n")
cached = ("--prompt-cache", "prompt.cache", "--prompt-cache-ro")  # read once, by the plain engine
Path("prompt.cache").unlink(missing_ok=True)
complete(prompt, *cached[:2], tokens=1, backend=False)
plain = complete(prompt, *cached, backend=False)
check(plain.code == 0 and len(plain.out) > 60, "the plain engine writes a text")

dense = complete(prompt, *cached, budget=1000000, min_context=512)
check(dense.code == 0 and dense["steps"] == 0, "budget above the context: attention is left to the engine")
check("within the budget" in dense.err and dense.out == plain.out, "... which is said, and the 64 tokens are the same")

full = complete(prompt, *cached, policy="full", min_context=512)
check(full["dense_rows"] >= 63 * 30 and full["sparse_rows"] == 0, "policy full: every step is our dense one")
check(full.out == plain.out, "... and the 64 tokens are the same")

automatic = complete(prompt, *cached, "-fa", "auto", policy="full", min_context=512)
check(automatic["dense_rows"] >= 63 * 30 and automatic.out == plain.out, "-fa auto finds the back end as well")

sparse = complete(prompt, *cached, min_context=512)
check(sparse.code == 0 and sparse["sparse_rows"] >= 63 * 30, "every step was sparse")
read = sparse["tokens_selected"] / sparse["sparse_rows"]
seen = sparse["tokens_visible"] / sparse["sparse_rows"]
check(68 <= read < seen / 2 and seen > 1000, f"... a query read {read:.0f} of {seen:.0f} tokens")
check(sparse["stale_rows"] == 0, "... with no stale row")
check(0 < sparse["blocks_encoded"] < 63 * 30 * 3 * 3, "... and encoded little more than one block a head and step")

short = complete(prompt, *cached, min_context=100000)
check(short["steps"] == 0 and short.out == plain.out, "below ADAMAS_MIN_CONTEXT the engine is left alone")
layers = complete(prompt, *cached, min_context=512, dense_layers=28)
check(0 < layers["steps"] <= 64 * 2, "ADAMAS_DENSE_LAYERS=28 of 30 leaves 28 layers to the engine")

few = text_file("few.txt", 300)
off = complete(few, "-fa", "off", tokens=4, budget=16, min_context=0)
check(off.code == 0 and off["steps"] == 0, "-fa off: plain")
check("adamas: flash attention is off" in off.err, "... and the way out is said, after the engine's silent dry run")
