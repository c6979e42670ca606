"""The command line of ``python -m adamas.eval``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cases import BUDGETS, POLICIES

DESCRIPTION = """The paper's experiments on a model of Hugging Face transformers, each one command.

Every policy reads the same tokens with the same model. Results lie in --out: a line of JSON for each finished part, so that the
same command typed again goes on where it was stopped; a plot; and a page that needs nothing else. Every page has the divergence
from full attention on arithmetic chains, a text in which every step matters: needles alone prove little."""


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "python -m adamas.eval", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = top.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, what: str, details: str) -> argparse.ArgumentParser:
        one = kinds.add_parser(
            name, help=what, description=f"{what.capitalize()}. {details}", formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        add = one.add_argument
        add("--model", required=True, help="a name or a folder, as from_pretrained takes it, or a file MODEL.gguf")
        add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights, K and V")
        add("--threads", type=int, help="of PyTorch and of the library; without it, one for each processor")
        policies = "; ".join(f"{name}: {meaning}" for name, meaning in POLICIES.items())
        add("--policy", type=words, default="full,streaming,quest,paper,adamas", help=f"a list of {policies}")
        add(
            "--budget",
            type=words,
            default="auto,128",
            help=f"tokens that a query head reads, a list; all of them: {','.join(BUDGETS)}",
        )
        add(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE[,VALUE]",
            help="another of adamas.settings(); may be repeated",
        )
        add("--out", type=Path, default=Path("adamas-eval"), help="where results go: KIND.jsonl, KIND.html, KIND.svg")
        add("--fresh", action="store_true", help="forget what was finished before")
        return one

    def prompts(add: argparse.ArgumentParser, lengths: str) -> None:
        add.add_argument("--lengths", type=numbers, default=lengths, help="tokens of a prompt and its answer, a list")
        add.add_argument("--seed", type=int, default=1, help="another number, other prompts")
        add.add_argument(
            "--chat", action="store_true", help="ask by the model's chat template; without it, the model goes on with the text"
        )

    one = kind(
        "perplexity",
        "how much worse a model predicts a text",
        "Every row from min_context on selects for itself; the second half is scored.",
    )
    one.add_argument("--file", nargs="+", default=[], help="texts: PG19's books for one, or program code")
    one.add_argument("--context", type=int, default=8192, help="tokens of a window")
    one.add_argument("--score-from", type=int, default=0, help="tokens of a window that are not scored; 0: half of them")
    one.add_argument("--chunks", type=int, default=1, help="windows of each file, one after the other")
    one.add_argument("--prefix", default="sparse", choices=("sparse", "dense"), help="how rows that are not scored are read")

    one = kind(
        "passkey",
        "whether a number in a long text is found again",
        "The prompt is read by the model's own attention, its last token and the answer with each policy.",
    )
    prompts(one, "2048,4096,8000")
    one.add_argument("--depths", type=int, default=10, help="places in the text, from its start to its end")

    one = kind(
        "ruler",
        "RULER's tasks that need no download",
        "Needles, variable tracking, common and frequent words; and sums, where every step matters.",
    )
    prompts(one, "4096,8192")
    one.add_argument("--tasks", type=words, default="all", help="a list; help: names them")
    one.add_argument("--samples", type=int, default=10, help="of each task and length")

    one = kind(
        "recall",
        "what each layer and head selects of what it should",
        "The share of the highest true scores and of the softmax that the selection holds.",
    )
    one.add_argument("--file", required=True, help="a text")
    one.add_argument("--context", type=int, default=8192, help="tokens of it")
    one.add_argument("--samples", type=int, default=32, help="tokens that are looked at, in the second half")
    one.add_argument("--enough", type=float, default=0.9, help="share of the softmax that a layer should read")

    one = kind(
        "longbench",
        "LongBench on its own files",
        "DIR/TASK.jsonl as LongBench has them; with dataset2prompt.json and dataset2maxlen.json beside them also its own prompts.",
    )
    one.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the files")
    one.add_argument("--tasks", type=words, default="all", help="a list; all: those that the folder has; help: names them")
    one.add_argument("--samples", type=int, default=0, help="of each task, from its start; 0: all")
    one.add_argument(
        "--length", type=int, default=0, help="tokens of a prompt, which loses its middle; 0: the model's context less 512"
    )
    one.add_argument("--chat", action="store_true", help="ask by the model's chat template, but in the few-shot and code tasks")

    kinds.add_parser(
        "lm_eval", add_help=False, help="lm-evaluation-harness with the model class adamas: its own arguments follow"
    )
    return top
