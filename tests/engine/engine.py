"""What the engine tests share: where the tools are, how to run one with and without the back end, what it reported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

BACKEND = os.environ["ADAMAS_BACKEND"]  # libggml-adamas.so
TOOLS = Path(os.environ["ADAMAS_LLAMA_BIN"])
MODELS = Path(os.environ.get("ADAMAS_MODELS_DIR") or "models")
MODEL = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = MODELS / "kjv.txt"
THREADS = str(min(os.cpu_count() or 1, 8))

REFRAIN = "\nThe wind goes toward the south, and turns about to the north."  # after some of these a model goes on with it

SKIPPED = 77  # ctest shows the test as skipped, not as passed


def need(*paths):
    for path in paths:
        if not Path(path).exists():
            print(f"skipped: there is no {path}")
            sys.exit(SKIPPED)


def check(truth, sentence):
    """One line a check; the first that fails ends the test."""
    print(("ok    " if truth else "FAILED  ") + sentence, flush=True)
    if not truth:
        sys.exit(1)


class Run:
    def __init__(self, done):
        self.code = done.returncode
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode(errors="replace")
        self.reports = [json.loads(line) for line in re.findall(r"^adamas: stats (\{.*\})$", self.err, re.M)]

    def __getitem__(self, name):
        """A number of the back end's report at exit: printed once, or the test is over."""
        if len(self.reports) != 1:
            print(self.err[-4000:])
            check(False, f"one report at exit (there are {len(self.reports)})")
        return self.reports[0][name]


def environment(**settings):
    """Of a tool: budget=128 becomes ADAMAS_BUDGET=128. Nothing of the caller's own settings gets in."""
    ours = {f"ADAMAS_{name.upper()}": str(value) for name, value in settings.items()}
    return {k: v for k, v in os.environ.items() if not k.startswith("ADAMAS_") and k != "GGML_BACKEND_PATH"} | ours


def run(tool, *arguments, backend=True, **settings):
    if backend:
        variables = environment(**{"stats": 1, **settings}) | {"GGML_BACKEND_PATH": BACKEND}
    else:
        variables = environment()
    path = tool if os.path.isabs(str(tool)) else TOOLS / tool
    done = subprocess.run([str(path), *map(str, arguments)], env=variables, stdin=subprocess.DEVNULL, capture_output=True)
    return Run(done)


def text_file(name, characters, start=0, ending=""):
    """A piece of the King James text in the working directory of the test."""
    path = Path(name)
    path.write_text(TEXT.read_text()[start:start + characters] + ending)
    return path


def complete(prompt, *arguments, tokens=64, context=2048, **settings):
    """Greedy text after a prompt."""
    return run("llama-completion", "-m", MODEL, "-t", THREADS, "-c", context, "-n", tokens, "--temp", 0, "--ignore-eos",
               "-fa", "on", "-no-cnv", "--no-display-prompt", "-f", prompt, *arguments, **settings)
