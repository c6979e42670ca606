"""What each layer and query head selects of what it should, as ``adamas eval recall`` measures it.

The text is read by the model's own attention. At each sample, evenly in its second half, one token is decoded with every case; the
true scores of its steps follow from q and K.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from .. import version
from ..transformers import Step
from .cases import Case
from .model import Model, fork
from .perplexity import Text, sparse
from .records import Records, Rows, hash_of

MEASURES = ("top_found", "mass_true", "mass_estimated", "noise", "tokens", "needed")


def truth_of(step: Step, enough: float) -> list[dict[str, float]]:
    """Of the last row of the last sequence, by query head: the share of the truly highest scores, as many as were selected, that the
    selection holds; its share of the softmax; what the step thought that share and the variance of its scores were; the tokens
    selected; and how many of the highest true scores hold ``enough`` of the softmax."""
    group = step.query.shape[1] // step.key.shape[1]
    found = []
    for head in range(step.query.shape[1]):
        scores = step.key[-1, head // group].float() @ step.query[-1, head, -1].float() * step.scale
        if step.softcap:
            scores = step.softcap * torch.tanh(scores / step.softcap)
        with_sink = scores if step.sink_logits is None else torch.cat([scores, step.sink_logits[head].float()[None]])
        weights = (scores - with_sink.logsumexp(0)).double().exp()
        selected = torch.from_numpy(step.plan.selection(head))
        threshold = scores.sort(descending=True).values[max(len(selected) - 1, 0)]
        held = weights.sort(descending=True).values.cumsum(0)
        found.append(
            {
                "top_found": (scores[selected] >= threshold).double().mean().item(),
                "mass_true": weights[selected].sum().item(),
                "mass_estimated": step.result.mass[-1, -1, head].item(),
                "noise": step.result.noise[-1, -1, head].item(),
                "tokens": float(len(selected)),
                "needed": float(min(len(held), int((held < enough).sum()) + 1)),
            }
        )
    return found


def recall(
    model: Model, cases: Sequence[Case], text: Text, context: int, samples: int, enough: float, records: Records, progress: Any
) -> Rows:
    """A row for each case, layer and query head, means over the samples.

    Raises: SystemExit where the text is too short, or no case selects anything.
    """
    cases = [case for case in cases if not case.is_full]
    if not cases:
        raise SystemExit("adamas.eval: the policy full selects nothing; name another")
    if len(text.tokens) < context:
        raise SystemExit(f"adamas.eval: {text.name} has {len(text.tokens)} tokens; {context} are needed")
    if not 0 < samples <= context // 2:
        raise SystemExit(f"adamas.eval: --samples {samples}: half of a context of {context} tokens has {context // 2}")
    tokens = text.tokens[:context]
    of = {
        "kind": "recall",
        "model": model.identity,
        "adamas": version(),
        "tokens": hash_of(str(tokens)),
        "samples": samples,
        "enough": enough,
    }
    parts = [{**of, "case": case.words} for case in cases]
    missing = [i for i, part in enumerate(parts) if records.find(part) is None]
    if missing:
        measured = _measure(model, [cases[i] for i in missing], tokens, samples, enough, progress)
        for i, rows in zip(missing, measured):
            records.add(parts[i], rows)
    where = {"file": text.name, "model": model.name, "context": context, "samples": samples}
    return [{**where, **case.fields, **row} for case, part in zip(cases, parts) for row in records.find(part) or []]


def _measure(model: Model, cases: Sequence[Case], tokens: list[int], samples: int, enough: float, progress: Any) -> list[Rows]:
    values: list[Any] = [defaultdict(list) for _ in cases]  # by case: [layer, head, measure] of the samples
    cache, at, half = model.cache(), 0, len(tokens) // 2
    for sample in range(1, samples + 1):
        place = half + (len(tokens) - half) * sample // samples - 1
        model.read(tokens[at:place], cache)
        at = place
        for case, found in zip(cases, values):
            with sparse(model, case.config()) as enabled:

                def observe(step: Step, found: Any = found) -> None:
                    if step.result.stats["rows_sparse"] == 0:
                        return  # nothing was selected
                    for head, truth in enumerate(truth_of(step, enough)):
                        for name in MEASURES:
                            found[step.layer, head, name].append(truth[name])

                enabled.observer = observe
                model.predict([tokens[place]], fork(cache))
        progress.update(1)
    return [
        [
            {"layer": layer, "head": head, **{name: _mean(found[layer, head, name]) for name in MEASURES}}
            for layer, head in sorted({key[:2] for key in found})
        ]
        for found in values
    ]


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
