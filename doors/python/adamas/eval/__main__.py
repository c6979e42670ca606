"""The paper's experiments on a model of Hugging Face transformers, each one command.

Every policy reads the same tokens with the same model. Results lie in --out: a line of JSON for each finished part, so that the same
command typed again goes on where it was stopped; a plot; and a page that needs nothing else. Every page has the divergence from full
attention on arithmetic chains, a text in which every step matters: needles alone prove little.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .cases import BUDGETS, POLICIES, cases_of, parse_settings

CHAINS = "arithmetic chains"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m adamas.eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = top.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, words: str, details: str) -> Any:
        one = kinds.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}. {details}", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        one.add_argument("--model", required=True, help="a name or a folder, as from_pretrained takes it, or a file MODEL.gguf (with the package gguf)")
        one.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights, K and V")
        one.add_argument("--threads", type=int, help="of PyTorch and of the library; without it, one for each processor")
        one.add_argument("--policy", default="full,streaming,quest,paper,adamas", help="; ".join(f"{name}: {words}" for name, words in POLICIES.items()))
        one.add_argument("--budget", default="auto,128", help=f"tokens that a query head reads, a list; the paper's tables: {','.join(BUDGETS)}")
        one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE[,VALUE...]", help="a further setting of adamas.settings(); may be repeated")
        one.add_argument("--out", type=Path, default=Path("adamas-eval"), help="where results go: KIND.jsonl, KIND.html, KIND.svg")
        one.add_argument("--fresh", action="store_true", help="forget what was finished before")
        return one

    def prompts(one: Any, lengths: str) -> None:
        one.add_argument("--lengths", default=lengths, help="tokens of a prompt and its answer, a list")
        one.add_argument("--seed", type=int, default=1, help="another number, other prompts")
        one.add_argument("--chat", action="store_true", help="ask as a user does, by the model's chat template; without it, the model goes on with the text")

    one = kind("perplexity", "how much worse a model predicts a text", "Every row from min_context on selects for itself; the second half is scored.")
    one.add_argument("--file", nargs="+", default=[], help="texts, PG19's books for one, or program code")
    one.add_argument("--context", type=int, default=8192, help="tokens of a window")
    one.add_argument("--score-from", type=int, default=0, help="tokens of a window that are not scored; 0: half of them")
    one.add_argument("--chunks", type=int, default=1, help="windows of each file, one after the other")
    one.add_argument("--prefix", default="sparse", choices=("sparse", "dense"), help="how rows that are not scored are read")

    one = kind("passkey", "whether a number in a long text is found again", "The prompt is read by the model's own attention, its last token and the answer with each policy.")
    prompts(one, "2048,4096,8000")
    one.add_argument("--depths", type=int, default=10, help="places in the text, from its start to its end")

    one = kind("ruler", "RULER's tasks that need no download", "Needles in repeated and made-up text, variable tracking, common and frequent words; and sums, where every step matters.")
    prompts(one, "4096,8192")
    one.add_argument("--tasks", default="all", help="a list; --tasks help names them")
    one.add_argument("--samples", type=int, default=10, help="of each task and length")

    one = kind("recall", "what each layer and head selects of what it should", "The share of the highest true scores and of the softmax that the selection holds, by layer and head.")
    one.add_argument("--file", required=True, help="a text")
    one.add_argument("--context", type=int, default=8192, help="tokens of it")
    one.add_argument("--samples", type=int, default=32, help="tokens that are looked at, in the second half")
    one.add_argument("--enough", type=float, default=0.9, help="share of the softmax that a layer should read")

    one = kind("longbench", "LongBench on its own files", "DIR/<task>.jsonl as LongBench has them; with its dataset2prompt.json and dataset2maxlen.json beside them its own prompts.")
    one.add_argument("--data", type=Path, required=True, help="the folder of the files")
    one.add_argument("--tasks", default="all", help="a list; all: those that the folder has")
    one.add_argument("--samples", type=int, default=0, help="of each task, from its start; 0: all")
    one.add_argument("--length", type=int, default=0, help="tokens of a prompt; its middle is left out if it has more; 0: what the model was made for, less 512")
    one.add_argument("--chat", action="store_true", help="ask by the model's chat template, as LongBench does but for its few-shot and code tasks")

    kinds.add_parser("lm_eval", add_help=False, help="lm-evaluation-harness with the model class adamas: its own arguments follow")
    return top


def main(given: list[str]) -> None:
    if given[:1] == ["lm_eval"]:
        from .harness import main as harness

        return harness(given[1:])
    arguments = parser().parse_args(given)
    if getattr(arguments, "tasks", "") == "help":
        from .tasks import longbench, ruler

        print("\n".join(ruler.TASKS if arguments.kind == "ruler" else longbench.TASKS))
        return
    cases = cases_of(arguments.policy.split(","), arguments.budget.split(","), parse_settings(arguments.set))
    files = [arguments.file] if isinstance(getattr(arguments, "file", []), str) else getattr(arguments, "file", [])
    texts = [(Path(name).name, _read(name)) for name in files]

    from .model import Model
    from .records import Records

    records = Records(arguments.out / f"{arguments.kind}.jsonl", arguments.fresh)
    model = Model(arguments.model, arguments.dtype, arguments.threads)
    run(arguments, model, cases, texts, records)
    print(f"adamas.eval: {arguments.out / (arguments.kind + '.html')}", file=sys.stderr)


def run(arguments: argparse.Namespace, model: Any, cases: Any, texts: list[tuple[str, str]], records: Any) -> None:
    from tqdm import tqdm

    from . import report
    from .answers import ask
    from .perplexity import Text, Windows, perplexity
    from .recall import recall
    from .tasks import longbench, passkey, ruler
    from .tasks.chains import chains_of

    kind, out = arguments.kind, arguments.out
    sections: dict[str, Any] = {}
    if kind == "perplexity":
        what = Windows(arguments.context, arguments.score_from, arguments.chunks, arguments.prefix)
        longest = what.context * what.chunks
        given = [Text(name, model.tokens(text)) for name, text in texts]
    elif kind == "recall":
        given, longest = [Text(name, model.tokens(text)) for name, text in texts], arguments.context
        with tqdm(total=arguments.samples, unit="sample") as progress:
            sections["recall"] = recall(model, cases, given[0], arguments.context, arguments.samples, arguments.enough, records, progress)
    else:
        if kind == "longbench":
            longest = arguments.length or model.context - 512
            names = [] if arguments.tasks == "all" else arguments.tasks.split(",")
            asked = longbench.longbench(model, arguments.data, names, arguments.samples, longest, arguments.chat)
        else:
            lengths = [int(length) for length in arguments.lengths.split(",")]
            longest = max(lengths)
            if kind == "passkey":
                asked = passkey.passkey(model, lengths, arguments.depths, arguments.seed, arguments.chat)
            else:
                names = list(ruler.TASKS) if arguments.tasks == "all" else arguments.tasks.split(",")
                for name in names:
                    if name not in ruler.TASKS:
                        raise SystemExit(f"adamas.eval: --tasks {name}; there are {', '.join(ruler.TASKS)}")
                asked = ruler.ruler(model, names, lengths, arguments.samples, arguments.seed, arguments.chat)
        questions = list(asked)
        with tqdm(total=len(questions), unit="prompt") as progress:
            rows = ask(model, cases, questions, records, progress)
        if kind == "passkey":
            rows = [{**row, "found": row["score"] == 1} for row in rows]
        sections["passkey" if kind == "passkey" else "scores"] = rows
    if kind != "perplexity":
        given, what = [], Windows(longest, score_from=longest - min(512, longest // 2), prefix="dense")
    given.append(Text(CHAINS, chains_of(model, longest)))
    with tqdm(total=len(given) * len(cases) * what.chunks, unit="reading") as progress:
        sections["perplexity"] = perplexity(model, cases, given, what, records, progress)

    report.print_tables(sections)
    report.plot(out / f"{kind}.svg", sections)
    report.write_page(out / f"{kind}.html", model, sections)
    if len(cases) > 1 and not any(row["tokens_read"] for row in sections["perplexity"]):
        print("adamas.eval: nothing ran sparse: the context is within min_context or the budget, or the model's layers are not served")


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"adamas.eval: --file {name}: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
