"""python -m adamas.eval beside `adamas eval`, on SmolLM2: the same text, length and positions give the same figures within noise.

The engine rounds what it multiplies its weights with to 8 bits and keeps K and V in f16, PyTorch does neither: full perplexities
differ by 0.3% to 0.6%, divergences by 0.004 (docs/quality.md, "KL of rounding alone"). What is selected by scores multiplies the
noise (of 64 tokens' divergence 8% were seen, of Quest's 14%); StreamingLLM, which looks at no score, shows how near the rest is: 3%.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

MODELS = pathlib.Path(os.environ.get("ADAMAS_MODELS_DIR") or "/nowhere")
MODEL, TEXT = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf", MODELS / "kjv.txt"
COMMAND = os.environ.get("ADAMAS_COMMAND") or "/nowhere"
for needed in (MODEL, TEXT, pathlib.Path(COMMAND)):
    if not needed.exists():
        print(f"skipped: {needed} is not there")
        sys.exit(77)
try:
    import gguf  # noqa: F401
    import matplotlib  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

CONTEXT = "512"
engine = {name: value for name, value in os.environ.items() if not name.startswith("ADAMAS_") and name != "GGML_BACKEND_PATH"}


def run(*command, env=None):
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stderr[-4000:]}")
    return done.stdout


failed = False


def check(good, words):
    global failed
    print(("ok    " if good else "FAILED") + " " + words)
    failed |= not good


with tempfile.TemporaryDirectory() as folder:
    text = pathlib.Path(folder, "text.txt")
    text.write_text(
        TEXT.read_text(encoding="utf-8")[1_000_000:1_012_000], encoding="utf-8"
    )  # its first chapters repeat themselves
    with_all = ["--policy", "streaming,adamas", "--budget", "auto,64"]
    theirs = json.loads(run(COMMAND, "eval", "perplexity", "--model", MODEL, "--threads", 1, "--file", text, "--context", CONTEXT, *with_all,
                            "--min-context", 0, "--resume", "/dev/null", "--json", env=engine))  # fmt: skip
    run(sys.executable, "-m", "adamas.eval", "perplexity", "--model", MODEL, "--threads", 1, "--file", text, "--context", CONTEXT, *with_all,
        "--set", "min_context=0", "--out", folder)  # fmt: skip
    page = pathlib.Path(folder, "perplexity.html").read_text(encoding="utf-8")
    ours = json.loads(page.split('id="document">')[1].split("</script>")[0])["perplexity"]

of = {(row["policy"], row["budget"]): row for row in ours if row["file"] == "text.txt"}
check(len(theirs) == len(of) == 5, f"the same cases: {len(theirs)} and {len(of)}")
for their in theirs:
    our = of[their["policy"], their["budget"]]
    name = f"{their['policy']} {their['budget'] or ''}"
    print(f"       {name}: perplexity {their['perplexity']:.4f} and {our['perplexity']:.4f}, ratio {their['ratio']:.4f} and {our['ratio']:.4f}, "
          f"KL {their['kl']:.4f} and {our['kl']:.4f}, tokens read {their['tokens_read'] or 0:.1f} and {our['tokens_read'] or 0:.1f}")  # fmt: skip
    check(their["scored"] == our["scored"], f"{name}: as many tokens are scored")
    if their["policy"] == "full":
        check(abs(our["perplexity"] / their["perplexity"] - 1) < 0.01, f"{name}: the perplexity")
    error = 3 * math.hypot(our["ratio_error"], their["ratio_error"])
    check(abs(our["ratio"] - their["ratio"]) <= error, f"{name}: the ratio, within {error:.4f}")
    percent = 0.05 if their["policy"] == "streaming" else 0.2
    check(abs(our["kl"] - their["kl"]) <= 0.006 + percent * their["kl"], f"{name}: the divergence")
    if their["tokens_read"]:
        check(abs(our["tokens_read"] / their["tokens_read"] - 1) < 0.02, f"{name}: the tokens read")
check(of["streaming", 64]["kl"] > 0.2 > 0.01 > of["adamas", "auto"]["kl"], "the cases differ by more than that")
sys.exit(failed)
