"""Questions about long prompts, answered with every case.

A prompt is read once, by the model's own attention, but for its last token; that token and the answer are decoded with each case.
What two prompts have in common at their start is kept. Beside the answer stands the divergence of the next token's distribution
from full attention's, over the steps up to the one at which the two answers part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from .. import version
from .cases import Case
from .model import Model, fork
from .perplexity import divergence, sparse
from .records import Records, Rows, hash_of


@dataclass
class Question:
    prompt: list[int]
    expected: list[str]
    most: int  # tokens of an answer
    score: Callable[[str], float]  # of an answer: 0 to 1
    fields: dict[str, Any] = field(default_factory=dict)  # of its row: task, length, ...
    stop: str | None = None  # an answer that has begun ends with this character


class Reader:
    """Reads prompts, and keeps the last one's rows."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.prompt: list[int] = []
        self.cache: Any = model.cache()

    def read(self, prompt: list[int]) -> Any:
        """A cache of all tokens but the last."""
        rows = prompt[:-1]
        same = next((i for i, (a, b) in enumerate(zip(rows, self.prompt)) if a != b), min(len(rows), len(self.prompt)))
        if same < len(self.prompt):
            if same > 0 and all(type(layer) is DynamicLayer for layer in self.cache.layers):
                for layer in self.cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, :same], layer.values[:, :, :same]
            else:  # a sliding window has forgotten what lies before it
                same, self.cache = 0, self.model.cache()
        self.model.read(rows[same:], self.cache)
        self.prompt = rows
        return self.cache


def ask(model: Model, cases: Sequence[Case], questions: Sequence[Question], records: Records, progress: Any) -> Rows:
    """A row for each question and case."""
    reader = Reader(model)
    rows: Rows = []
    for question in questions:
        of = {"kind": "answer", "model": model.identity, "adamas": version(), "prompt": hash_of(str(question.prompt))}
        parts = [{**of, "most": question.most, "stop": question.stop, "case": case.words} for case in cases]
        missing = [i for i, part in enumerate(parts) if records.find(part) is None]
        if missing:
            progress.set_description(f"{question.fields.get('task', '')} {len(question.prompt)} tokens".strip())
            cache = reader.read(question.prompt)
            full: list[torch.Tensor] = []  # by step, [1, vocabulary]: the logarithms of what the first case predicts
            for i in sorted({0, *missing}):
                row = _answer(model, cases[i], question, fork(cache), full)
                if i in missing:
                    records.add(parts[i], [row])
        progress.update(1)
        for case, part in zip(cases, parts):
            [row] = records.find(part) or [{}]
            of_question = {**question.fields, "tokens": len(question.prompt), "expected": ", ".join(question.expected)}
            rows.append(
                {
                    "model": model.name,
                    **case.fields,
                    **of_question,
                    "score": (score := question.score(row["answer"])),
                    "found": score == 1,
                    **row,
                }
            )
    return rows


def _answer(model: Model, case: Case, question: Question, cache: Any, full: list[torch.Tensor]) -> dict[str, Any]:
    answer: list[int] = []
    divergences: list[float] = []
    ends = model.ends
    with contextlib.nullcontext() if case.is_full else sparse(model, case.config()) as enabled:
        token, together = question.prompt[-1], True
        while len(answer) < question.most:
            log = model.predict([token], cache)
            token = int(log.argmax())
            if case.is_full:
                full.append(log)
            if together:
                divergences.append(divergence(full[len(answer)], log).item())
                together = token == int(full[len(answer)].argmax())
            if token in ends:
                break
            answer.append(token)
            if question.stop is not None and question.stop in model.text(answer).lstrip(question.stop):
                break
        stats = dict(enabled.stats) if enabled else {}
    heads = stats.get("heads_sparse", 0)
    return {
        "answer": model.text(answer),
        "kl": sum(divergences) / len(divergences),
        "steps": len(divergences),
        "tokens_read": stats["tokens_selected"] / heads if heads else None,
    }
