"""llama-bench loads its back ends twice: one registration, one report."""

from engine import MODEL, THREADS, check, need, run

need(MODEL)
done = run("llama-bench", "-m", MODEL, "-t", THREADS, "-fa", 1, "-p", 0, "-n", 4, "-d", 300, "-r", 1, min_context=256)
check(done.code == 0 and "tg4 @ d300" in done.out, "llama-bench ran")
check(done["sparse_rows"] == 4 * 30, "every decoding step was sparse, once")
listed = run("llama-bench", "--list-devices")
check(listed.code == 0, "llama-bench lists its devices")
