"""How much worse a model predicts a text when every row selects, as ``adamas eval perplexity`` measures it.

A window is ``context`` tokens of the text, the first replaced by the token that the model wants before a text, if it wants one;
those behind ``score_from`` are scored. Every row from the settings' ``min_context`` on is sparse; with ``prefix="dense"`` the scored
ones alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import Config, version
from ..transformers import enable
from .cases import Case
from .model import PIECE, Model, fork
from .records import Records, Rows, finite, hash_of

SUMS = (
    "scored",
    "loss",
    "difference",
    "difference_squared",
    "kl",
    "same_top",
    "heads",
    "tokens_read",
    "mass",
    "guarded",
    "widened",
)
STATS = {
    "heads": "heads_sparse",
    "tokens_read": "tokens_selected",
    "mass": "mass",
    "guarded": "heads_guarded",
    "widened": "heads_widened",
}


@dataclass
class Text:
    name: str
    tokens: list[int]


@dataclass
class Windows:
    context: int = 8192
    score_from: int = 0  # 0: half of the context
    chunks: int = 1  # windows of a text, one after the other
    prefix: str = "sparse"  # how rows that are not scored are read

    @property
    def first_scored(self) -> int:
        return self.score_from or self.context // 2


def perplexity(
    model: Model, cases: Sequence[Case], texts: Sequence[Text], what: Windows, records: Records, progress: Any
) -> Rows:
    """A row for each text and case.

    Raises: SystemExit where a text is too short.
    """
    if not 0 < what.first_scored < what.context - 1:
        raise SystemExit(
            f"adamas.eval: --score-from {what.first_scored} leaves nothing to score in a context of {what.context} tokens"
        )
    rows: Rows = []
    for text in texts:
        if len(text.tokens) < what.context * what.chunks:
            raise SystemExit(f"adamas.eval: {text.name} has {len(text.tokens)} tokens; {what.context * what.chunks} are needed")
        totals = [dict.fromkeys(SUMS, 0.0) for _ in cases]
        for first in range(0, what.context * what.chunks, what.context):
            for total, sums in zip(
                totals, _window(model, cases, text.tokens[first : first + what.context], what, records, progress)
            ):
                for name in SUMS:
                    total[name] += math.nan if sums[name] is None else sums[name]
        of = {"file": text.name, "model": model.name, "context": what.context, "prefix": what.prefix}
        rows += [{**of, **case.fields, **_figures(total)} for case, total in zip(cases, totals)]
    return rows


def _window(model: Model, cases: Sequence[Case], tokens: list[int], what: Windows, records: Records, progress: Any) -> Rows:
    """The sums of each case over one window."""
    tokens = [model.first_token if model.first_token is not None else tokens[0], *tokens[1:]]
    of = {"kind": "perplexity", "model": model.identity, "adamas": version(), "tokens": hash_of(str(tokens))}
    parts = [{**of, "scored from": what.first_scored, "prefix": what.prefix, "case": case.words} for case in cases]
    missing = [i for i, part in enumerate(parts) if records.find(part) is None]
    if missing:
        dense = what.first_scored
        if what.prefix == "sparse":
            sparse_from = min((int(case.config().min_context) - 1 for case in cases if not case.is_full), default=dense)
            dense = max(0, min(dense, sparse_from)) // 64 * 64
        base = model.cache()
        progress.set_description(f"reading {dense} tokens")
        model.read(tokens[:dense], base)
        full: list[torch.Tensor] = []  # the logarithms of what the first case predicts, of all scored rows
        for i in sorted({0, *missing}):
            progress.set_description(cases[i].name)
            found = _read(model, cases[i], tokens, dense, what, fork(base), full, keep=i == 0)
            if i in missing:
                records.add(parts[i], [found])
    progress.update(len(cases))
    return [rows[0] for part in parts if (rows := records.find(part)) is not None]


def _read(
    model: Model, case: Case, tokens: list[int], at: int, what: Windows, cache: Any, full: list[torch.Tensor], keep: bool
) -> dict[str, float]:
    sums = dict.fromkeys(SUMS, 0.0)
    end = what.context - 1  # the last token predicts nothing that is in the window
    piece = 0
    with sparse(model, case.config(rows="all")) if not case.is_full else contextlib.nullcontext() as enabled:
        for first in range(at, what.first_scored, PIECE):
            model.read(tokens[first : min(first + PIECE, what.first_scored)], cache)
        before = dict(enabled.stats) if enabled else {}
        for first in range(what.first_scored, end, model.rows_with_logits):
            last = min(first + model.rows_with_logits, end)
            log = model.predict(tokens[first:last], cache)
            if keep:
                full.append(log)
            _score(sums, full[piece], log, torch.tensor(tokens[first + 1 : last + 1]))
            piece += 1
        if enabled:
            for name, count in STATS.items():
                sums[name] = enabled.stats.get(count, 0.0) - before.get(count, 0.0)
    return sums


def sparse(model: Model, config: Config) -> Any:
    return enable(model.model, config, threads=torch.get_num_threads())


def _score(sums: dict[str, float], full: torch.Tensor, log: torch.Tensor, targets: torch.Tensor) -> None:
    """Adds rows. full, log: [rows, vocabulary]; targets: [rows]."""
    loss, of_full = (-x.gather(1, targets[:, None])[:, 0].double() for x in (log, full))
    sums["scored"] += len(targets)
    sums["loss"] += loss.sum().item()
    sums["difference"] += (loss - of_full).sum().item()
    sums["difference_squared"] += (loss - of_full).square().sum().item()
    sums["kl"] += divergence(full, log).sum().item()
    sums["same_top"] += (log.argmax(-1) == full.argmax(-1)).sum().item()


def divergence(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(full || other) of distributions given by their logarithms, [..., vocabulary], in nats: [...]."""
    return (full.exp() * (full - other)).nansum(-1).clamp(min=0)  # -inf in both is no difference


def _figures(sums: dict[str, float]) -> dict[str, Any]:
    count = sums["scored"]
    mean = sums["difference"] / count
    ratio = math.exp(mean)
    variance = max(0.0, sums["difference_squared"] / count - mean * mean)
    of_heads = {
        name: sums[name] / sums["heads"] if sums["heads"] else None for name in ("mass", "tokens_read", "guarded", "widened")
    }
    return finite(
        {
            "perplexity": math.exp(sums["loss"] / count),
            "ratio": ratio,
            "ratio_error": ratio * math.sqrt(variance / max(1.0, count - 1)),  # from the paired differences of the tokens
            "kl": sums["kl"] / count,
            "same_top": sums["same_top"] / count,
            **of_heads,
            "scored": count,
        }
    )
