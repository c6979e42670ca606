"""The results as a page, which is that of ``adamas eval``, and as plots."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import version
from .._library import _checkout, _find, lib, text
from .model import Model
from .records import Rows, finite

COLOURS = ("#0072b2", "#c64f00", "#00805d", "#9c4f83", "#8a6d00", "#4b5563")  # those of the page
MARKS = "os^Dv*"


def write_page(path: Path, model: Model, sections: dict[str, Rows]) -> None:
    """One file of HTML that needs nothing else.

    Args: sections: rows by what the page calls them: perplexity, passkey, scores, recall.
    """
    meta = {
        "command": ["python", "-m", "adamas.eval", *sys.argv[1:]],
        "version": version(),
        "engine": f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {model.dtype}",
        "instruction_set": text(lib.adamas_isa_in_use()),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "model": model.name,
    }
    template = _find("report.html", "ADAMAS_REPORT_PAGE", _checkout / "doors/cli/pages/report.html").read_text(encoding="utf-8")
    document = json.dumps(finite({"meta": meta, **sections}))  # ASCII: no line separator of Unicode
    path.write_text(template.replace("{{document}}", document.replace("<", "\\u003c")), encoding="utf-8")


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def series_of(row: dict[str, Any]) -> str:
    """What a curve is called: a policy with what tells it from others, but for the budget."""
    return " ".join(row[name] for name in ("policy", "estimator", "preset", "label") if row[name])


def name_of(row: dict[str, Any]) -> str:
    return series_of(row) + ("" if row["budget"] is None else f" {row['budget']}")


def mean(values: list[Any]) -> float:
    known = [float(value) for value in values if value is not None and value == value]
    return sum(known) / len(known) if known else math.nan


def plot_curves(path: Path, rows: Rows, measure: str, words: str) -> None:
    """A measure over the tokens that a query head reads in full: a panel for each text, or one for tasks."""
    plt = _pyplot()
    places = list(dict.fromkeys(row.get("file", "") for row in rows))
    figure, axes = plt.subplots(1, len(places), figsize=(5.5 * len(places), 4), squeeze=False)
    for axis, place in zip(axes[0], places):
        here = [row for row in rows if row.get("file", "") == place]
        names = list(dict.fromkeys(series_of(row) for row in here if row["policy"] != "full"))
        for i, name in enumerate(names):
            cases = dict.fromkeys(name_of(row) for row in here if series_of(row) == name)
            own = [[row for row in here if name_of(row) == case] for case in cases]
            points = sorted((mean([row["tokens_read"] for row in case]), mean([row[measure] for row in case])) for case in own)
            axis.plot(*zip(*points), color=COLOURS[i % 6], marker=MARKS[i % 6], label=name)
        full = mean([row[measure] for row in here if row["policy"] == "full"])
        if not math.isnan(full):
            axis.axhline(full, color="black", linestyle=":", label="full attention")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens that a query head reads in full")
        axis.set_ylabel(words)
        axis.set_title(place)
        axis.legend(fontsize=8)
    _save(figure, path)


def plot_grid(path: Path, rows: Rows, column: str, row: str, measure: str, words: str) -> None:
    """Means of a measure by column and row, a panel for each case."""
    plt = _pyplot()
    groups = _by_case(rows)
    columns, lines = (sorted({one[of] for one in rows}) for of in (column, row))
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(max(5, 0.22 * len(columns) + 2), max(2.2, 0.16 * len(lines) + 1) * len(groups)), squeeze=False
    )
    for axis, (name, own) in zip(axes[:, 0], groups.items()):
        values = [[mean([one[measure] for one in own if one[column] == x and one[row] == y]) for x in columns] for y in lines]
        image = axis.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90 if len(columns) > 12 else 0)
        axis.set_yticks(range(len(lines)), [f"{line:g}" for line in lines], fontsize=7)
        axis.set_xlabel(column)
        axis.set_ylabel(row)
        figure.colorbar(image, ax=axis, label=words)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    _pyplot().close(figure)


def plot(path: Path, sections: dict[str, Rows]) -> None:
    if sections.get("recall") == []:
        return  # nothing was selected
    if "recall" in sections:
        plot_grid(path, sections["recall"], "layer", "head", "mass_true", "share of the softmax")
    elif "passkey" in sections:
        plot_grid(path, sections["passkey"], "length", "depth", "score", "found")
    elif "scores" in sections:
        plot_curves(path, sections["scores"], "score", "mean score")
    else:
        plot_curves(path, sections["perplexity"], "ratio", "perplexity, over full attention's")


def print_tables(sections: dict[str, Rows]) -> None:
    if "recall" in sections:
        measures = {"top_found": ".3f", "mass_true": ".3f", "mass_estimated": ".3f", "tokens": ".1f", "needed": ".1f"}
        groups = _by_case(sections["recall"])
        _print(
            [{"selection": name, **{of: mean([row[of] for row in own]) for of in measures}} for name, own in groups.items()],
            {"selection": "", **measures},
        )
    for section in ("passkey", "scores"):
        if section in sections:
            table = scores(sections[section])
            _print(table, {name: "" if name == "selection" else ".4f" if name == "kl" else ".3f" for name in table[0]})
    figures = {
        "perplexity": ".4f",
        "ratio": ".4f",
        "ratio_error": ".4f",
        "kl": ".4f",
        "same_top": ".3f",
        "mass": ".3f",
        "tokens_read": ".1f",
    }
    _print([{"selection": name_of(row), **row} for row in sections["perplexity"]], {"file": "", "selection": "", **figures})


def scores(rows: Rows) -> Rows:
    """A row for each case: its mean score in each task, their average, and the mean divergence."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    table = []
    for name, own in _by_case(rows).items():
        of_task = {task: mean([row["score"] for row in own if row["task"] == task]) for task in tasks}
        table.append(
            {"selection": name, **of_task, "average": mean(list(of_task.values())), "kl": mean([row["kl"] for row in own])}
        )
    return table


def _by_case(rows: Rows) -> dict[str, Rows]:
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    return groups


def _print(rows: Rows, columns: dict[str, str]) -> None:
    """Columns are fields with their format; without one they are words."""
    lines = [list(columns)] + [[_word(row[name], how) for name, how in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(word.rjust(n) if how else word.ljust(n) for word, n, how in zip(line, widths, columns.values())).rstrip())
    print()


def _word(value: Any, how: str) -> str:
    return "-" if value is None or value != value else format(value, how)
