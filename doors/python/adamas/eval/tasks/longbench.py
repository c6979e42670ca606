"""LongBench (arXiv 2308.14508) on its own files, ``DIR/TASK.jsonl``: a line has ``input``, ``context``, ``answers``, ``all_classes``.

The prompts are those of LongBench where its ``dataset2prompt.json`` and ``dataset2maxlen.json`` lie beside the files (they are in its
repository, under ``config``), else short ones of our own, whose scores are not those of published tables. A prompt that is too long
loses its middle.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..answers import Question
from ..model import Model
from . import metrics
from .metrics import Metric

_ASK = "{context}\n\nAnswer the question by the text above. Give only the answer, in a few words.\nQuestion: {input}\nAnswer:"
_ASK_ZH = "{context}\n\n请根据上文回答问题，只给出答案，不要解释。\n问题：{input}\n回答："
_SUM_UP = "{context}\n\nWrite a summary of the text above.\nSummary:"
_SUM_UP_FOR = "{context}\n\nAnswer the question by the text above, in some sentences.\nQuestion: {input}\nAnswer:"
_GO_ON = "{context}\n{input}"
_COUNT = (
    "{context}\n\nSome of the paragraphs above are repeated. How many different ones are there? Give only the number.\nAnswer:"
)
_WHICH = (
    "{context}\n\nThis sums up one of the paragraphs above:\n{input}\nWhich one? Answer as Paragraph 1, Paragraph 2, ...\nAnswer:"
)
_WHICH_ZH = "{context}\n\n以下是上文某一段落的摘要：\n{input}\n它属于哪一段？请回答段落1、段落2等。\n回答："

# By task: the metric, the tokens of an answer, our prompt.
TASKS: dict[str, tuple[Metric, int, str]] = {
    "narrativeqa": (metrics.qa_f1, 128, _ASK),
    "qasper": (metrics.qa_f1, 128, _ASK),
    "multifieldqa_en": (metrics.qa_f1, 64, _ASK),
    "multifieldqa_zh": (metrics.qa_f1_zh, 64, _ASK_ZH),
    "hotpotqa": (metrics.qa_f1, 32, _ASK),
    "2wikimqa": (metrics.qa_f1, 32, _ASK),
    "musique": (metrics.qa_f1, 32, _ASK),
    "dureader": (metrics.rouge_zh, 128, _ASK_ZH),
    "gov_report": (metrics.rouge, 512, _SUM_UP),
    "qmsum": (metrics.rouge, 512, _SUM_UP_FOR),
    "multi_news": (metrics.rouge, 512, _SUM_UP),
    "vcsum": (metrics.rouge_zh, 512, "{context}\n\n请总结上文。\n总结："),
    "trec": (metrics.classification, 64, _GO_ON),
    "triviaqa": (metrics.qa_f1, 32, _GO_ON),
    "samsum": (metrics.rouge, 128, _GO_ON),
    "lsht": (metrics.classification, 64, _GO_ON),
    "passage_count": (metrics.count, 32, _COUNT),
    "passage_retrieval_en": (metrics.retrieval, 32, _WHICH),
    "passage_retrieval_zh": (metrics.retrieval_zh, 32, _WHICH_ZH),
    "lcc": (metrics.code_similarity, 64, "{context}"),
    "repobench-p": (metrics.code_similarity, 64, _GO_ON),
}
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")  # only the answer's first line counts
AS_TEXT = (*FIRST_LINE, "lcc", "repobench-p")  # the model goes on with them, whatever --chat says


def task_of(path: Path) -> str:
    """``hotpotqa_e.jsonl`` of LongBench-E is the task hotpotqa."""
    return path.stem.removesuffix("_e")


def score(task: str, expected: Sequence[str], classes: Sequence[str], answer: str) -> float:
    """The best over the expected texts, 0 to 1."""
    if task in FIRST_LINE:
        answer = answer.lstrip("\n").split("\n")[0]
    return max((TASKS[task][0](answer, one, classes) for one in expected), default=0.0)


def without_middle(tokens: list[int], most: int) -> list[int]:
    """
    >>> without_middle([1, 2, 3, 4, 5], 4)
    [1, 2, 4, 5]
    """
    return tokens if len(tokens) <= most else [*tokens[: most // 2], *tokens[len(tokens) - most // 2 :]]


def longbench(
    model: Model, data: Path, names: Sequence[str], samples: int, length: int, chat: bool = False
) -> Iterator[Question]:
    """Prompts of at most ``length`` tokens, without the answer.

    Args: names: tasks; none: all that DIR has. samples: of each, from its start; 0: all.
    Raises: SystemExit where DIR has no file of a task, or a line of a file lacks a field.
    """
    files = [path for path in sorted(data.glob("*.jsonl")) if task_of(path) in TASKS and (not names or task_of(path) in names)]
    lacking = [name for name in names if not any(task_of(path) == name for path in files)]
    if lacking or not files:
        raise SystemExit(
            f"adamas.eval: --data {data} has no file for {', '.join(lacking) or 'any task'}; there are tasks {', '.join(TASKS)}"
        )
    prompts, lengths = (_config(data, name) for name in ("dataset2prompt", "dataset2maxlen"))
    for path in files:
        task = task_of(path)
        most = lengths.get(task, TASKS[task][1])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if samples and number >= samples:
                break
            try:
                entry = json.loads(line)
                text = prompts.get(task, TASKS[task][2]).format(**entry)
                expected, classes = entry["answers"], entry.get("all_classes") or []
            except (ValueError, KeyError) as error:
                raise SystemExit(f"adamas.eval: line {number + 1} of {path} is no entry of LongBench: {error}") from None
            tokens = without_middle(model.tokens(text), length)
            if chat and task not in AS_TEXT:
                tokens = model.tokens(model.as_question(model.text(tokens)))
            yield Question(
                tokens,
                expected,
                most,
                functools.partial(score, task, expected, classes),
                {"task": path.stem, "sample": number, "prompts": "LongBench" if task in prompts else "own"},
                stop="\n" if task in FIRST_LINE else None,
            )


def _config(data: Path, name: str) -> dict[str, Any]:
    for place in (data, data / "config", data.parent / "config"):
        if (path := place / f"{name}.json").exists():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}
