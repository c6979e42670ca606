"""The engine's scheduler asks which nodes we take: asking again gives the same answers, and does nothing else."""

import os
import re

from engine import BACKEND, TOOLS, check, need, run

need(TOOLS / "libggml-base.so", TOOLS / "libggml-cpu.so")
done = run(os.environ["ADAMAS_PLANNING"], TOOLS, BACKEND, budget=16, min_context=256)
print(done.out, done.err[-2000:] if done.code else "", sep="\n")
check(done.code == 0, "what the scheduler was told is said again, in any order")
left = sorted(map(int, re.findall(r"left to the engine, (\d+) nodes", done.err)))
check(left == [2, 6], f"a node that is left counts once: 6 of short contexts, 2 of the first graph ({left})")
# The short context whose rows the engine wrote, and the keys that it turned; two layers each.
anew = int(re.search(r"(\d+) caches encoded anew", done.err)[1])
check(anew == 4, f"codes were dropped once for each change, and by no question ({anew} caches encoded anew)")
