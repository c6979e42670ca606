#!/usr/bin/env python3
"""make figures: tokens a second of decoding over the depth, plain and with Adamas in turn, as README.md has them: medians, and the range
of the ratios of pairs. What is measured is the commit that the table names; a depth of 16,384 takes six minutes a pair here."""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: make figures -->", "<!-- end -->"


def told(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def measure(model, depth, pairs, threads):
    print(f"depth {depth}, {pairs} pairs", file=sys.stderr, flush=True)
    rows = json.loads(told(ROOT / "build/bin/adamas", "bench", "--json", "--model", model, "--depth", str(depth), "--repeat", str(pairs), "--threads", str(threads)))
    plain, ours = (row["runs"] for row in rows)
    ratios = sorted(b / a for a, b in zip(plain, ours))
    spread = "" if len(ratios) == 1 else f" ({ratios[0]:.2f}x to {ratios[-1]:.2f}x)"
    return f"| {depth} | {statistics.median(plain):.1f} | {statistics.median(ours):.1f} | **{statistics.median(ratios):.2f}x**{spread} | {pairs} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", default="0:5,512:5,8192:3,16384:2", help="depth:pairs, ... (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if told("git", "status", "--porcelain", "--untracked-files=no"):
        sys.exit("the figures are those of a commit, and something is changed that is not committed")
    lines = [measure(options.model, *map(int, one.split(":")), options.threads) for one in options.pairs.split(",")]
    commit = told("git", "rev-parse", "--short", "HEAD")
    named = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    processor = named[1] if named else "unknown processor"
    table = ["| depth | plain | with Adamas | median of pairs (range) | pairs |", "|---|---|---|---|---|", *lines, "", f"Commit {commit}, {options.threads} threads ({processor})."]
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    readme.write_text(before + BEGIN + "\n" + "\n".join(table) + "\n" + rest[rest.index(END) :], encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
