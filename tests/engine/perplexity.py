"""Every row of a batch selects for itself (ADAMAS_ROWS=all): a list and a rest cost less than 2%, 128 tokens by estimate and nothing else less than 6%.
(The other policies, by figures: eval.py.)"""

import re

from engine import MODEL, TEXT, THREADS, check, need, run, text_file

need(MODEL, TEXT)
CONTEXT = 2048
# From the middle of the text. Its first chapters repeat themselves so much that even the exact top 128 costs 21% there; here it costs
# 2.6%. The tool wants two chunks of text to measure one.
text = text_file("perplexity.txt", 24000, start=1000000)


def perplexity(**settings):
    done = run("llama-perplexity", "-m", MODEL, "-t", THREADS, "-c", CONTEXT, "-b", 512, "--chunks", 1, "-fa", "on",
               "-f", text, rows="all", min_context=0, **settings)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.out + done.err)
    if done.code != 0 or not found:
        print(done.err[-4000:])
    check(done.code == 0 and found, f"llama-perplexity ran with {settings}")
    return float(found.group(1)), done


full, _ = perplexity(backend=False)
results = {}
for name, budget in {"list": "auto", "dot": 128}.items():
    results[name], done = perplexity(budget=budget)
    check(done["sparse_rows"] >= 1800 * 30, f"{name}: the rows were sparse ({done['sparse_rows']} of them)")
    print(f"      {name}: {results[name]:.4f}, {results[name] / full:.4f} times full ({full:.4f})")
check(results["list"] <= 1.02 * full, "a list and a rest lie within 2% of full")
check(results["dot"] <= 1.06 * full, "dot at 128 lies within 6% of full")
