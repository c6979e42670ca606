"""Nodes computed by the back end against the engine's own CPU back end; nodes that no constructor would build."""

import os

from engine import BACKEND, TOOLS, check, need, run

need(TOOLS / "libggml-base.so", TOOLS / "libggml-cpu.so")
for settings in ({"budget": 1000000, "min_context": 0}, {"policy": "full"}):
    done = run(os.environ["ADAMAS_GRAPHS"], TOOLS, BACKEND, "compare", **settings)
    print(done.out, done.err[-2000:] if done.code else "", sep="\n")
    check(done.code == 0 and done["dense_rows"] > 100, f"equal to the CPU back end with {settings}")
done = run(os.environ["ADAMAS_GRAPHS"], TOOLS, BACKEND, "refuse", budget=16, min_context=0)
print(done.out, done.err[-2000:] if done.code else "", sep="\n")
check(done.code == 0 and done["sparse_rows"] > 0, "broken nodes are refused, and good ones still run")
done = run(os.environ["ADAMAS_GRAPHS"], TOOLS, BACKEND, "alone", budget=16, min_context=0)
print(done.out)
check(done.code == 0 and done["steps"] == 0, "without a CPU back end to store rows as it does, nothing is computed here")
