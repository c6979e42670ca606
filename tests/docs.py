#!/usr/bin/env python3
"""Every flag, variable and file that a page names is there: `--flag`, `ADAMAS_NAME` and paths of the repository, in every *.md."""

import glob
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Flags of other programs that pages name: cmake, ctest, pip, llama.cpp's tools, perf.
OTHERS = {"--preset", "--build", "--prefix", "--install", "--target", "--output-on-failure", "--wrap", "--repeat-until-fail"}
# What a page of the past may name: it is gone.
PAST = {"docs/history.md", "CHANGELOG.md"}


def tracked(*patterns):
    names = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", *patterns], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split()
    return [name for name in names if (ROOT / name).is_file()]


def sources():
    """All that is not a page, as one text."""
    texts = []
    for name in tracked():
        if name.endswith((".md", ".json", "bits.txt")) or name == "tests/docs.py":
            continue
        texts.append((ROOT / name).read_text(encoding="utf-8", errors="ignore"))
    return "\n".join(texts)


def settings(text):
    """Flags that follow from the table of settings."""
    return {"--" + name.lower().replace("_", "-") for name in re.findall(r'"ADAMAS_([A-Z_]+)"', text)}


def problems(page, text, flags, every_source):
    for flag in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))):
        if flag not in flags and flag not in OTHERS and not re.search(re.escape(flag) + r"(?![\w-])", every_source):
            yield f"the flag {flag} is in no source"
    for name in sorted(set(re.findall(r"\bADAMAS_[A-Z0-9_]+\b", text))):
        if not re.search(rf"\b{name}\b", every_source):
            yield f"{name} is in no source"
    named = set(re.findall(r"`((?:src|docs|doors|tests|tools|include|examples|bench|cmake)/[\w./*<>-]*)`", text))
    for path in sorted(named):
        if "<" not in path and not glob.glob(str(ROOT / path)):
            yield f"there is no {path}"
    for link in sorted(set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))):
        if not (page.parent / link).exists():
            yield f"the link {link} leads nowhere"


def main():
    if not (ROOT / ".git").exists():
        print("this is no checkout, so which files belong to the project is not known")
        return 77
    every_source = sources()
    flags = settings(every_source)
    found = 0
    for name in tracked("*.md"):
        page = ROOT / name
        for problem in problems(page, page.read_text(encoding="utf-8"), flags, every_source):
            if name in PAST and "leads nowhere" not in problem:
                continue
            print(f"{name}: {problem}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
