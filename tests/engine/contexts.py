"""State restore, slot load, clear, sequence copy, two sequences at once, context shift, cells used again: the answer is that of a
context that never knew anything else, with the policy full and sparse."""

import os

from engine import MODEL, TEXT, TOOLS, check, need, run, text_file

need(MODEL, TEXT, TOOLS / "libllama.so")
text = text_file("contexts.txt", 6000)
program = os.environ["ADAMAS_CONTEXTS"]


def answers(**settings):
    done = run(program, TOOLS, MODEL, text, **settings)
    print("\n".join("      " + line for line in done.out.splitlines() if not line.startswith("answer")))
    if done.code != 0:
        print(done.err[-3000:])
    check(done.code == 0, f"every answer is that of a fresh context, {settings}")
    return [line for line in done.out.splitlines() if line.startswith("answer")], done


plain, _ = answers(backend=False)
full, dense = answers(policy="full", min_context=256)
check(dense["dense_rows"] > 1500 and dense["sparse_rows"] == 0, "the back end computed the decoding steps")
# The engine adds values up in f16 and we in f32, so a tie between two words may end differently some words later.
begin = lambda answers: [line.split(":")[1].split()[:5] for line in answers]
check(begin(full) == begin(plain) and len(plain) >= 6, "with our dense attention the answers begin as the plain engine's do")
_, sparse = answers(min_context=256)
check(sparse["sparse_rows"] > 1500, "without it the steps were sparse")
check(sparse["stale_rows"] == 0, "every change was noticed before a stale code was used")
