#!/usr/bin/env python3
"""make eval: what each setting costs, on several models and kinds of text. Writes the tables of docs/quality.md and, for each
model, build/eval/MODEL.html and .json. What was finished before is not run again (remove the cache's folder `eval` for that).
"""

import html
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = pathlib.Path(os.environ["ADAMAS_MODELS"])
TEXTS = MODELS / "texts"
OUT = ROOT / "build/eval"
PAGE = ROOT / "docs/quality.md"
COMMAND = ROOT / "build/bin/adamas"

CONTEXT = int(os.environ.get("ADAMAS_EVAL_CONTEXT", "8192"))
TEXTS_OF_ALL = ["kjv", "code", "manual", "german"]
RUNS = [  # model file, texts
    ("SmolLM2-135M-Instruct.Q4_1", TEXTS_OF_ALL),
    ("gemma-3-270m.Q4_K_M", TEXTS_OF_ALL),
    ("Qwen2.5-Coder-0.5B-Instruct.Q4", [*TEXTS_OF_ALL, "irc"]),
]
DENSE = "1e-07"  # max_noise at which every head is read densely, by our kernels: what rounding alone makes of a divergence
FLAGS = ["--policy", "full,adamas", "--max-noise", f"{DENSE},8"]


def handbook(language):
    """The text of the Debian handbook, section by section, as it lies in the package's folder of HTML."""
    parts = []
    for page in sorted(pathlib.Path(f"/usr/share/doc/debian-handbook/html/{language}").glob("sect.*.html")):
        text = re.sub(r"(?s)<(script|style|head).*?</\1>", "", page.read_text(encoding="utf-8"))
        text = re.sub(r"(?i)</(p|div|h\d|li|pre|tr)>", "\n", text)
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
        parts.append(re.sub(r"\n\s*\n+", "\n", re.sub(r"[ \t]+", " ", text)))
    return "\n".join(parts)[200_000:600_000]


def quotes():
    """What people said to each other: the quotes from IRC among Debian's fortunes."""
    folder = pathlib.Path("/usr/share/games/fortunes")
    lines = [line for name in ("knghtbrd", "debian") for line in (folder / name).read_text(encoding="utf-8", errors="ignore").splitlines()]
    return "\n".join(line for line in lines if line != "%") + "\n"


def write_texts():
    """Every kind of text that is not there yet."""
    TEXTS.mkdir(parents=True, exist_ok=True)
    source = ROOT / "build/llama/source/src"
    kinds = {
        "kjv": lambda: (MODELS / "kjv.txt").read_text(encoding="utf-8")[:400_000],
        "code": lambda: "".join((source / name).read_text(encoding="utf-8") for name in ("llama-context.cpp", "llama-vocab.cpp")),
        "manual": lambda: handbook("en-US"),
        "german": lambda: handbook("de-DE"),
        "irc": quotes,
    }
    for kind, make in kinds.items():
        path = TEXTS / f"{kind}.txt"
        if path.exists():
            continue
        text = make()
        if len(text) < 100_000:
            sys.exit(f"adamas: the text '{kind}' is not there; are its Debian packages installed?")
        path.write_text(text, encoding="utf-8")


def evaluate(model, texts):
    files = [flag for text in texts for flag in ("--file", str(TEXTS / f"{text}.txt"))]
    print(f"adamas: {model}: {', '.join(texts)}", file=sys.stderr, flush=True)
    result = subprocess.run([str(COMMAND), "eval", "perplexity", "--model", str(MODELS / f"{model}.gguf"), *files,
                             "--context", str(CONTEXT), *FLAGS, "--json", "--html", str(OUT / f"{model}.html")],
                            stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(result.returncode)
    (OUT / f"{model}.json").write_text(result.stdout)
    return json.loads(result.stdout)


def table(results):
    lines = ["| model | text | full | tokens read in full | ratio | KL | KL of rounding alone | same top token | mass |",
             "|---|---|---|---|---|---|---|---|---|"]
    for model, rows in results:
        full = {row["file"]: row["perplexity"] for row in rows if row["policy"] == "full"}
        floor = {row["file"]: row["kl"] for row in rows if row["settings"].get("max_noise") == DENSE}
        for row in rows:
            if row["policy"] == "full" or row["settings"].get("max_noise") == DENSE:
                continue
            lines.append(f"| {model} | {pathlib.Path(row['file']).stem} | {full[row['file']]:.3f} | {row['tokens_read']:.0f} | "
                         f"**{row['ratio']:.4f}** ± {row['ratio_error']:.4f} | {row['kl']:.4f} | {floor[row['file']]:.4f} | "
                         f"{100 * row['same_top']:.1f}% | {row['mass']:.3f} |")
    return "\n".join(lines)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write_texts()
    results = [(model.rsplit(".", 1)[0], evaluate(model, texts)) for model, texts in RUNS]
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- table: make eval -->\n", "<!-- end -->"
    before, rest = page.split(begin, 1)
    PAGE.write_text(before + begin + table(results) + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
    print(f"adamas: docs/quality.md has the table; pages: {OUT}/*.html", file=sys.stderr)


if __name__ == "__main__":
    main()
