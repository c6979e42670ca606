#!/usr/bin/env python3
"""clang-tidy over our sources, with the checks of .clang-tidy. A file that was clean is not looked at again before something that it
is made of changes: itself, a header, its flags, the checks. What was clean is kept in the build folder, which is the argument."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("src", "doors")
BESIDE = ("_test.cc", "_bench.cc", ".cu")  # GoogleTest's and Google Benchmark's macros are most of what would be found in the first two; clang-tidy 14 does not know CUDA 13


def version_and_checks():
    """Other versions find other things, so only clang-tidy 14 (Debian 12's) decides."""
    try:
        told = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return None
    if " version 14." not in told:
        return None
    return told + subprocess.run(["clang-tidy", "--dump-config"], cwd=ROOT, capture_output=True, text=True).stdout


def sources(build):
    """Of each of our files the first command that compiles it, and its object."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        file = pathlib.Path(entry["file"])
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in FOLDERS and not file.name.endswith(BESIDE):
            found.setdefault(file, (entry["command"], build / entry["output"]))
    return found


def headers(build):
    """Of each object the files that it was made of, as Ninja remembers them."""
    listed = subprocess.run(["ninja", "-C", build, "-t", "deps"], capture_output=True, text=True, check=True).stdout
    made_of = {}
    for line in listed.splitlines():
        if found := re.match(r"(\S+): #deps .*\((VALID|STALE)\)", line):
            files = made_of[build / found[1]] = []
        elif line.startswith("    "):
            files.append(build / line.strip())
    return made_of


class Contents:
    def __init__(self):
        self.known = {}

    def of(self, path):
        if path not in self.known:
            self.known[path] = hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""
        return self.known[path]


def more_arguments():
    """Clang does not know every warning of GCC's. omp.h is GCC's own here: it is found behind Clang's headers, and its
    __malloc__(omp_free) is more than Clang 14 can read."""
    own = subprocess.run(["g++", "-print-file-name=include"], capture_output=True, text=True).stdout.strip()
    return [f"--extra-arg={word}" for word in ("-Wno-unknown-warning-option", f"-idirafter{own}", "-D__malloc__(x)=__malloc__")]


def look_at(build, file, more):
    began = time.monotonic()
    done = subprocess.run(["clang-tidy", "-p", build, "--quiet", "--warnings-as-errors=*", *more, file], cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, done.stdout.strip() or done.stderr.strip(), time.monotonic() - began


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    told = version_and_checks()
    if told is None or not (build / "build.ninja").exists():
        print("clang-tidy 14 is not here, or this is no build by Ninja, so nothing is looked at")
        return 77
    contents, made_of, clean = Contents(), headers(build), build / "tidy"
    clean.mkdir(exist_ok=True)
    waiting = {}
    for file, (command, output) in sources(build).items():
        key = hashlib.sha256((told + command).encode() + contents.of(file))
        for header in made_of.get(output, ()):
            key.update(contents.of(header))
        mark = clean / str(file.relative_to(ROOT)).replace("/", ".")
        # An object that is not built yet has no list of headers: then nobody knows whether they changed.
        if output not in made_of or not mark.exists() or mark.read_text() != key.hexdigest():
            waiting[file] = (mark, key.hexdigest())
    print(f"{len(waiting)} files to look at", flush=True)
    bad = 0
    more = more_arguments()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as workers:
        running = {workers.submit(look_at, build, file, more): file for file in sorted(waiting, key=lambda file: file.parts, reverse=True)}
        for done in concurrent.futures.as_completed(running):
            file = running[done]
            is_clean, said, seconds = done.result()
            mark, key = waiting[file]
            print(f"{seconds:5.1f} s  {file.relative_to(ROOT)}" + ("" if is_clean else "\n" + said), flush=True)
            bad += not is_clean
            if is_clean:
                mark.write_text(key)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
