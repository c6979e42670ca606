#!/usr/bin/env python3
"""A long document and questions about it, answered by the same llama.cpp plain and with Adamas.

The document is read by both sides, which says how long one waits for a first answer. The plain engine's state is kept,
and each answer starts from it, so the two sides differ in nothing but the back end. `make demo` asks about three facts hidden in the King James text and requires
that Adamas finds what the plain engine finds, at least 2 times as fast; with MODEL, FILE or QUESTION it reports.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
ENGINE = BUILD / "llama" / "bin"
BACK_END = BUILD / "lib" / "libggml-adamas.so"
STATES = BUILD / "demo"

VERSES = 245  # of the King James text: about 7,500 tokens
NEW_TOKENS = 128
REQUIRED_SPEEDUP = 2.0
THREADS = min(8, len(os.sched_getaffinity(0)))  # more do not help a model as small as the demo's


class Problem(Exception):
    """What the user should read instead of a traceback."""


@dataclasses.dataclass
class Fact:
    depth: float  # where in the document, from 0 to 1
    sentence: str
    question: str
    lead: str  # the answer's first words: a model this small completes a sentence better than it answers a question
    answer: str


# Chosen on the plain engine alone, which finds all three.
FACTS = [
    Fact(0.15, "The name of the white camel of Hazor is Bartholomew.", "What is the name of the white camel of Hazor?",
         "The name of the white camel of Hazor is", "Bartholomew"),
    Fact(0.50, "The telephone number of the museum is 555-2368.", "What is the telephone number of the museum?",
         "The telephone number of the museum is", "555-2368"),
    Fact(0.85, "The favourite dish of the old gardener is pumpkin soup.", "What is the favourite dish of the old gardener?",
         "The favourite dish of the old gardener is", "pumpkin soup"),
]


@dataclasses.dataclass
class Job:
    model: pathlib.Path
    document: str
    questions: list[str]
    prompts: list[str]  # what follows the document, a question each
    facts: list[str]  # what each answer must hold; empty for a document of the user's own

    def found(self, i: int, answer: "Answer") -> bool:
        return self.facts[i].lower() in answer.text.lower()


@dataclasses.dataclass
class Answer:
    text: str
    tokens_per_second: float
    stats: dict  # what the back end counted; empty for the plain engine

    def reads(self) -> str:
        """How many tokens one query read in full, of how many it could see, on average."""
        rows = self.stats.get("sparse_rows", 0)
        if not rows:
            return "every token (dense)"
        return f"{self.stats['tokens_selected'] / rows:,.0f} of {self.stats['tokens_visible'] / rows:,.0f} tokens"


# ---- the job ---------------------------------------------------------------------------------------------------------


def default_document(models: pathlib.Path) -> str:
    """The first verses, a line each, without their numbers, and the facts between them."""
    lines = (models / "kjv.txt").read_text().splitlines()[:VERSES]
    lines = [line.split(" ", 1)[1] for line in lines]
    for fact in sorted(FACTS, key=lambda fact: -fact.depth):
        lines.insert(round(fact.depth * VERSES), fact.sentence)
    return "\n".join(lines)


def make_job(options: argparse.Namespace) -> Job:
    models = pathlib.Path(os.environ.get("ADAMAS_MODELS", pathlib.Path.home() / ".cache/adamas/models"))
    model = pathlib.Path(options.model or models / "SmolLM2-135M-Instruct.Q4_1.gguf")
    for path in filter(None, [model, options.file]):
        if not os.path.isfile(path):
            raise Problem(f"there is no file {path}")
    if not (options.model or options.file or options.question):
        return Job(model, default_document(models), [fact.question for fact in FACTS],
                   [f"{fact.question} {fact.lead}" for fact in FACTS], [fact.answer for fact in FACTS])

    document = pathlib.Path(options.file).read_text(errors="replace") if options.file else default_document(models)
    question = options.question or "What is this text about?"
    return Job(model, document.strip(), [question], [f"Question: {question}\nAnswer:"], [])


# ---- the engine ------------------------------------------------------------------------------------------------------


def count_tokens(model: pathlib.Path, text: str) -> int:
    run = subprocess.run([ENGINE / "llama-tokenize", "-m", model, "--stdin", "--show-count", "--ids"],
                         input=text.encode(), capture_output=True)
    count = re.search(rb"Total number of tokens: (\d+)", run.stdout)
    if not count:
        raise Problem(f"llama-tokenize cannot read the model {model}:\n{last_lines(run.stderr.decode(errors='replace'))}")
    return int(count[1])


def complete(job: Job, context: int, prompt: str, state: pathlib.Path, *more: str, adamas: bool,
             each_line: typing.Callable[[str], None] = lambda line: None) -> tuple[str, str]:
    """What the engine writes, and its log. One command line: the two sides differ in their environment alone."""
    command = [str(word) for word in (
        ENGINE / "llama-completion", "-m", job.model, "-f", "/dev/stdin", "-no-cnv", "--no-display-prompt", "-fa", "on",
        "-t", THREADS, "-c", context, "--temp", 0, "--ignore-eos", "--prompt-cache", state, *more)]
    log = []
    with tempfile.TemporaryFile() as prompt_file, tempfile.TemporaryFile() as text:
        prompt_file.write(prompt.encode())
        prompt_file.seek(0)
        with subprocess.Popen(command, env=environment(adamas), stdin=prompt_file, stdout=text, stderr=subprocess.PIPE,
                              text=True, errors="replace") as engine:
            try:
                for line in engine.stderr:
                    log.append(line)
                    each_line(line)
            except BaseException:
                engine.kill()
                raise
        text.seek(0)
        return text.read().decode(errors="replace").strip(), "".join(log)


def environment(adamas: bool) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name != "GGML_BACKEND_PATH"}
    return {**plain, "ADAMAS_STATS": "1", "GGML_BACKEND_PATH": str(BACK_END)} if adamas else plain


def measured(log: str, what: str) -> tuple[float, int]:
    """Seconds and tokens, from the engine's own account."""
    line = re.search(rf": +{what} time = +([\d.]+) ms / +(\d+)", log)
    if not line:
        raise Problem(f"llama-completion failed:\n{last_lines(log)}")
    return float(line[1]) / 1000, int(line[2])


def read_document(job: Job, context: int, tokens: int) -> dict:
    """Reads the document by either side. Gives where the plain engine's state is kept, and how long each took. The plain
    engine reads a document once: where its state is kept already, its time is the one of then."""
    file = job.model.stat()
    engine = (BUILD / "llama").resolve().name
    inputs = [str(job.model.resolve()), file.st_size, file.st_mtime_ns, job.document, context, THREADS, engine]
    state = STATES / f"{hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]}.state"
    account = state.with_suffix(".json")  # written last: its presence says that the state is whole
    if not (account.exists() and state.exists()):
        STATES.mkdir(parents=True, exist_ok=True)
        kept = sorted(STATES.glob("*.state"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-1]:  # states are large: the last one stays, and the new one
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
        seconds = read(job, context, tokens, state, adamas=False)
        account.write_text(json.dumps({"state": str(state), "prompt_tokens": tokens, "prompt_seconds": seconds}))
    other = state.with_suffix(".other")
    try:
        return {**json.loads(account.read_text()), "with_adamas": read(job, context, tokens, other, adamas=True)}
    finally:
        other.unlink(missing_ok=True)


def read(job: Job, context: int, tokens: int, state: pathlib.Path, adamas: bool) -> float:
    """Reads the document and keeps its state. Gives the seconds that it took."""
    partial = state.with_suffix(".partial")
    begin = time.monotonic()

    def each_line(line: str) -> None:
        if done := re.search(r" n_past = (\d+)", line):
            show_progress(int(done[1]), tokens, time.monotonic() - begin, "with Adamas" if adamas else "by the plain engine")

    try:
        _, log = complete(job, context, job.document + "\n\n", partial, "-n", "1", "-b", "512", "--verbose",
                          adamas=adamas, each_line=each_line)
        seconds, _ = measured(log, "prompt eval")
        if not partial.exists():
            raise Problem(f"llama-completion saved no state:\n{last_lines(log)}")
        partial.rename(state)
    finally:
        partial.unlink(missing_ok=True)
        end_progress()
    return seconds


def answer(job: Job, context: int, state: str, prompt: str, adamas: bool) -> Answer:
    text, log = complete(job, context, f"{job.document}\n\n{prompt}", state, "--prompt-cache-ro", "-n", str(NEW_TOKENS),
                         adamas=adamas)
    seconds, tokens = measured(log, "eval")
    stats = re.findall(r"^adamas: stats (\{.*\})", log, re.MULTILINE)
    if adamas and not stats:
        raise Problem(f"the engine did not use the back end {BACK_END}:\n{last_lines(log)}")
    return Answer(text, tokens / seconds, json.loads(stats[-1]) if stats else {})


# ---- what people see -------------------------------------------------------------------------------------------------


def last_lines(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-15:])


def show_progress(done: int, tokens: int, seconds: float, by: str) -> None:
    def work(n: int) -> float:  # a token attends to all before it: at about 4,000 that costs as much as the rest
        return n + n * n / 8000

    left = seconds * (work(tokens) / work(done) - 1)
    line = f"adamas: reading the document {by}: {100 * done // tokens:3} %, {left:.0f} s left"
    if sys.stdout.isatty():
        print(f"\r{line}  ", end="", flush=True)
    elif done * 8 // tokens > (done - 512) * 8 // tokens:
        print(line, flush=True)


def end_progress() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


def first_sentence(text: str, width: int) -> str:
    sentence = re.split(r"(?<=[.?!])\s|\n", text, maxsplit=1)[0]
    return sentence if len(sentence) <= width else sentence[:width - 1] + "…"


def print_header(job: Job) -> None:
    print(f"\n{'':15}{'answer':{answer_width(job)}}{'found  ' if job.facts else ''}tokens/s    ratio   a query reads in full")


def print_answers(job: Job, i: int, full: Answer, adamas: Answer) -> None:
    def row(name: str, one: Answer, ratio: str, reads: str) -> None:
        width = answer_width(job)
        found = f"{'yes' if job.found(i, one) else 'no':7}" if job.facts else ""
        print(f"  {name:13}{first_sentence(one.text, width - 2):{width}}{found}{one.tokens_per_second:8.1f}{ratio:>9}   {reads}",
              flush=True)

    print(job.questions[i])
    row("plain engine", full, "", "every token")
    row("with Adamas", adamas, f"{adamas.tokens_per_second / full.tokens_per_second:.2f}x", adamas.reads())


def answer_width(job: Job) -> int:
    return 30 if job.facts else 64


def demo(options: argparse.Namespace) -> None:
    if not BACK_END.exists():
        raise Problem(f"the back end {BACK_END} is not built; run `make demo`, which builds it")
    job = make_job(options)
    STATES.mkdir(parents=True, exist_ok=True)

    document_tokens = count_tokens(job.model, job.document + "\n\n")
    needed = document_tokens + max(count_tokens(job.model, prompt) for prompt in job.prompts) + NEW_TOKENS + 8
    context = -(-needed // 1024) * 1024
    print(f"adamas: {job.model.stem}, a document of {document_tokens:,} tokens, {THREADS} threads")

    document = read_document(job, context, document_tokens)
    answers = {"full": [], "adamas": []}
    print_header(job)
    for i, prompt in enumerate(job.prompts):
        for side in answers:
            answers[side].append(answer(job, context, document["state"], prompt, adamas=side == "adamas"))
        print_answers(job, i, answers["full"][i], answers["adamas"][i])

    found = {side: [job.found(i, answers[side][i]) for i in range(len(job.facts))] for side in answers}
    speed = {side: statistics.median(one.tokens_per_second for one in answers[side]) for side in answers}
    speedup = speed["adamas"] / speed["full"]

    reading = {"full": document["prompt_seconds"], "adamas": document["with_adamas"]}
    waiting = {side: reading[side] + NEW_TOKENS / speed[side] for side in answers}
    print(f"\n{'':15}{'reading':>10}{f'{NEW_TOKENS} tokens':>14}{'the first answer':>20}")
    for side, name in (("full", "plain engine"), ("adamas", "with Adamas")):
        print(f"  {name:13}{reading[side]:8.1f} s{NEW_TOKENS / speed[side]:12.1f} s{waiting[side]:18.1f} s")
    print(f"  {'':13}{reading['full'] / reading['adamas']:8.2f}x{speedup:12.2f}x{waiting['full'] / waiting['adamas']:18.2f}x"
          f"\nAll answers start from the state of the plain engine's reading of {document['prompt_tokens']:,} tokens.")
    if job.facts:
        print("(Each question was followed by the first words of its answer; a model this small needs them.)")

    report = {"model": job.model.name, "threads": THREADS, "context": context, "questions": job.questions,
              "prompts": job.prompts, "facts": job.facts, "decode_speedup": speedup}
    for side in answers:
        report[side] = {
            "texts": [one.text for one in answers[side]], "found": found[side],
            "prompt_tokens": document["prompt_tokens"], "prompt_seconds": reading[side], "first_answer_seconds": waiting[side],
            "decode_tokens_per_second": speed[side],
            "decode_tokens_per_second_each": [one.tokens_per_second for one in answers[side]],
            "stats": [one.stats for one in answers[side]],
        }
    (BUILD / "demo.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print("All of it: build/demo.json")

    lost = [fact for fact, full, adamas in zip(job.facts, found["full"], found["adamas"]) if full and not adamas]
    if lost:
        raise Problem(f"the plain engine found {', '.join(lost)}, Adamas did not")
    if job.facts and speedup < REQUIRED_SPEEDUP:
        raise Problem(f"{speedup:.2f} times as fast; at least {REQUIRED_SPEEDUP} is required (was the machine busy?)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="GGUF", help="a model of your own")
    parser.add_argument("--file", metavar="TEXT", help="a document of your own")
    parser.add_argument("--question", help="your question about it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demo(parser.parse_args())
        return 0
    except Problem as problem:
        print(f"adamas: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nadamas: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
