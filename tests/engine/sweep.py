"""Small random models of every architecture that the engine knows (its own test writes them), decoded in every way, plain and with our
back end: none may crash, and where all tokens are read the logits are those of exact attention.

The engine itself is not exact: it rounds queries to the type that it multiplies K's by (q8_0 for a quantised one) and adds f16 values up in
f16, and some models make much of that. So what ours is held to is the same engine with attention computed in f64 (sweep.cpp) wherever ours
would run. How far the plain engine is from it stands beside.

sweep.py [--models PATTERN] [--seed N] [--deviation X]"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine import BACKEND, TOOLS, environment

WAYS = ("whole", "single", "batches", "drafts", "several", "several_unified", "copied", "copied_unified", "shift", "state", "slot", "extended")
TYPES = ("f16-f16", "q8_0-q8_0", "q4_0-f16", "f16-q4_0")  # of K and V
ALL = [f"{way}-{types}" for way in WAYS for types in TYPES]
# Mean square of the logits' difference from exact attention's, over their own. What is left is the last bit of f32, which a row rounded
# on its way into a cache or into a product can make 1e-9 of (hrm_text, whose two blocks make six layers, 1e-7); one token of 200
# forgotten is 2e-4 in llama, 5e-3 in mimo2, but 1e-8 in gemma3.
BOUND = 1e-6
SECONDS = 300  # that all ways of one model may take in one setting
WORST = 20  # lines of a table

# All tokens are read: by our dense attention, because the budget covers them (but in `extended`, see sweep.cpp), because nothing weighs too little.
EXACT = {
    "full": {"policy": "full", "min_context": 64},
    "budget": {"budget": 255, "min_context": 64},
    "share": {"share": 0.000001, "min_context": 64},
}
SPARSE = {"default": {"min_context": 64}}  # may differ, and does


class Outcome:
    def __init__(self):
        self.crashed = {}  # way: what happened
        self.refused = {}  # way: the engine's sentence
        self.rows = 0  # that our back end attended to


def decode(model, folder, attention, ways, settings=None):
    """A crash costs the way that it happened in; those behind it are begun anew."""
    folder.mkdir()
    outcome, left = Outcome(), ways
    variables = environment() | {"GGML_NO_BACKTRACE": "1"}
    if settings is not None:
        variables |= environment(stats=1, prompt="engine", **settings) | {"GGML_BACKEND_PATH": BACKEND}
    while left:
        command = [os.environ["ADAMAS_SWEEP"], str(model), str(folder), attention, *left]
        try:
            done = subprocess.run(command, env=variables, cwd=TOOLS, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
            end, said = f"code {done.returncode}", done.stderr
        except subprocess.TimeoutExpired as late:
            done, end, said = None, f"no end within {SECONDS} s", late.stderr or b""
        said = said.decode(errors="replace")
        outcome.rows += sum(map(int, re.findall(r'"(?:sparse|dense)_rows":(\d+)', said)))
        left = [way for way in left if not (folder / way).exists() and not (folder / f"{way}.no").exists()]
        if done is None or done.returncode != 0:
            way = left[0] if left else ways[-1]
            outcome.crashed[way] = f"{end}: {said.strip().splitlines()[-1] if said.strip() else 'silent'}"
            left = left[1:]
        elif left:
            outcome.crashed |= {way: "nothing was written" for way in left}
            left = []
    outcome.refused = {no.stem: no.read_text() for no in folder.glob("*.no")}
    return outcome


def differences(ours, theirs, ways):
    if not ways:
        return {}
    command = [os.environ["ADAMAS_SWEEP"], "compare", str(ours), str(theirs), *ways]
    done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, check=True)
    return {way: float(figure) for way, figure in (line.split() for line in done.stdout.splitlines())}


class Model:
    """What there is to say of one."""

    def __init__(self, path):
        self.name = path.stem
        self.left = {}  # way: why there is nothing to compare
        self.failed = []  # setting, way, what happened
        self.engine = {}  # way: how far the plain engine is from exact attention
        self.ours = {}  # (setting, way): how far ours is
        self.rows = {}  # setting: how many rows our back end attended to
        with tempfile.TemporaryDirectory(prefix="adamas-sweep-") as name:
            self.look(path, Path(name))

    def look(self, path, folder):
        plain = decode(path, folder / "plain", "given", ALL)
        ran = [way for way in ALL if way not in plain.crashed and way not in plain.refused]
        exact = decode(path, folder / "exact", "exact", ran)
        theirs = {"full": folder / "exact"}  # what a setting is compared with; only the policy full takes what is no cache
        if (folder / "exact" / "uncached").exists():
            decode(path, folder / "cached", "cached", ran)
        cached = folder / "cached" if (folder / "cached").exists() else folder / "exact"
        for way in ALL:
            if why := next((o[way] for o in (plain.crashed, plain.refused, exact.crashed, exact.refused) if way in o), None):
                self.left[way] = "the plain engine: " + why
        self.engine = differences(folder / "plain", folder / "exact", [way for way in ALL if way not in self.left])
        self.left |= {way: "the plain engine: no numbers" for way, figure in self.engine.items() if not math.isfinite(figure)}
        for setting, values in (EXACT | SPARSE).items():
            if self.rows.get("full") == 0 and setting in EXACT:
                continue  # a model of other layers: nothing of it runs here
            outcome = decode(path, folder / setting, "given", ran, values)
            said = outcome.refused | outcome.crashed
            compared = [way for way in ran if way not in said and way not in self.left]
            figures = differences(folder / setting, theirs.get(setting, cached), compared)
            self.rows[setting] = outcome.rows
            self.ours |= {(setting, way): figure for way, figure in figures.items()}
            self.failed += [(setting, way, said[way]) for way in ran if way in said]
            self.failed += [(setting, way, "no numbers") for way, figure in figures.items() if not math.isfinite(figure)]

    def held(self):
        """The figures that have a bound."""
        return {(s, way): figure for (s, way), figure in self.ours.items()
                if s in EXACT and not (s == "budget" and way.startswith("extended"))}


def worst_of_each(lines):
    """One line a model."""
    worst = {}
    for line in sorted(lines, key=lambda line: -line[0]):
        worst.setdefault(line[1].name, line)
    return list(worst.values())[:WORST]


def report(models, seconds):
    held = [(figure, m, setting, way) for m in models for (setting, way), figure in m.held().items()]
    plain = [(figure, m, way) for m in models for way, figure in m.engine.items() if way not in m.left]
    print(f"\nWhere all tokens are read, of {len(held)} comparisons with exact attention the worst, and the plain engine's own:\n")
    print(f"{'ours':>8} {'engine':>8}  model, setting, way-K-V")
    for figure, m, setting, way in worst_of_each(held):
        print(f"{figure:8.1e} {m.engine[way]:8.1e}  {m.name}, {setting}, {way}")
    print(f"\nThe plain engine's worst:\n\n{'engine':>8} {'ours':>8}  model, way-K-V")
    for figure, m, way in worst_of_each(plain):
        print(f"{figure:8.1e} {max((m.ours[s, way] for s in EXACT if (s, way) in m.held()), default=math.nan):8.1e}  {m.name}, {way}")
    sparse = [(figure, m.name, way) for m in models for (setting, way), figure in m.ours.items() if setting in SPARSE]
    if sparse:
        print(f"\nThe default settings, which may differ: at most {max(sparse)[0]:.1e} ({max(sparse)[1]}, {max(sparse)[2]})")
    reasons = {}
    for m in models:
        for way, why in m.left.items():
            reasons.setdefault(why, {}).setdefault(m.name, []).append(way)
    for why, of in reasons.items():
        print(f"left out, {sum(map(len, of.values()))} ways of {len(of)} models: {why} ({', '.join(list(of)[:6])}{', ...' if len(of) > 6 else ''})")
    idle = [m.name for m in models if not any(m.rows.values())]
    if idle:
        print(f"none of their attention is ours, {len(idle)} models: {', '.join(idle)}")
    broken = [line for line in held if not line[0] <= BOUND]
    for figure, m, setting, way in broken:
        print(f"FAILED  {m.name}, {setting}, {way}: {figure:.1e}, above {BOUND:.0e}")
    for m in models:
        for setting, way, why in m.failed:
            print(f"FAILED  {m.name}, {setting}, {way}: {why}")
    rows = sum(sum(m.rows.values()) for m in models)
    counts = f"{len(models)} models, {sum(len(m.engine) for m in models)} ways of theirs, {rows} rows of attention ours"
    print(f"{counts}, {seconds / 60:.0f} minutes: {len(broken)} above the bound, {sum(len(m.failed) for m in models)} crashes")
    return not broken and not any(m.failed for m in models) and bool(held)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="whose names match, for example mimo2; default: all")
    parser.add_argument("--seed", default="1", help="of the models' weights")
    parser.add_argument("--deviation", default="0.3", help="of the models' weights; at the 0.1 of the engine's test all tokens weigh nearly the same")
    options = parser.parse_args()
    os.nice(10)  # a night's work, beside somebody's day
    with tempfile.TemporaryDirectory(prefix="adamas-models-") as folder:
        command = [os.environ["ADAMAS_MODELS"], "-s", options.seed, "-d", options.deviation, "-o", folder]
        wrote = subprocess.run(command, env=environment(), cwd=TOOLS, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if wrote.returncode != 0:
            sys.exit(f"FAILED  the engine's test wrote no models\n{wrote.stdout[-2000:]}{wrote.stderr[-2000:]}")
        paths = sorted(path for path in Path(folder).glob("*.gguf") if re.search(options.models, path.stem))
        print(f"{len(paths)} models, {len(ALL)} ways, {', '.join(EXACT | SPARSE)}", flush=True)
        begin, models = time.monotonic(), []
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            for model in workers.map(Model, paths):
                models.append(model)
                left = (time.monotonic() - begin) * (len(paths) - len(models)) / len(models)
                worst, how = max(((figure, f"{s}, {way}") for (s, way), figure in model.held().items()), default=(0, "nothing to compare"))
                print(f"{len(models):>4} of {len(paths)}, {left:.0f} s left   {model.name:<24} {worst:.1e} ({how})"
                      + (f", {len(model.failed)} CRASHES" if model.failed else ""), flush=True)
    sys.exit(0 if report(models, time.monotonic() - begin) else 1)


if __name__ == "__main__":
    main()
