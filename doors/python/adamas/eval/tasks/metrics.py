"""LongBench's metrics (arXiv 2308.14508): score(answer, expected, classes), 0 to 1, the best over the expected texts."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Metric = Callable[[str, str, Sequence[str]], float]


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise SystemExit(
            f"adamas.eval: this metric needs the package {name}: pip install 'adamas[eval]', or {name} alone"
        ) from None


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _words_zh(text: str) -> list[str]:
    words = _library("jieba").cut(text.lower(), cut_all=False)
    found = (
        "".join(c for c in word if unicodedata.category(c)[0] not in "PSZC") for word in words
    )  # no punctuation, symbols, spaces
    return [word for word in found if word]


def _f1(answer: list[str], expected: list[str]) -> float:
    same = sum((Counter(answer) & Counter(expected)).values())
    return 2 * same / (len(answer) + len(expected)) if same else 0.0


def qa_f1(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    """F1 of the words, without articles and punctuation.

    >>> round(qa_f1("The red house.", "a house"), 4)
    0.6667
    """
    return _f1(_words(answer), _words(expected))


def qa_f1_zh(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    return _f1(_words_zh(answer), _words_zh(expected))


def rouge(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    """F1 of ROUGE-L, by the package that LongBench uses."""
    try:
        return _library("rouge").Rouge().get_scores([answer], [expected], avg=True)["rouge-l"]["f"]
    except ValueError:  # an empty answer
        return 0.0


def rouge_zh(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    cut = _library("jieba").cut
    return rouge(" ".join(cut(answer, cut_all=False)), " ".join(cut(expected, cut_all=False)))


def classification(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    """1 / n where the answer names n classes and the right one is among them; parts of its name do not count (of two parts in a row
    LongBench's own loop keeps the second).

    >>> classification("It is a Number or a Date", "Date", ["Number", "Date", "Place"])
    0.5
    """
    named = [one for one in classes if one in answer and not (one in expected and one != expected)]
    return 1 / len(named) if expected in named else 0.0


def _of_numbers(answer: str, number: str) -> float:
    found = re.findall(r"\d+", answer)
    return found.count(number) / len(found) if found else 0.0


def count(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    """The share of the right number among all numbers of the answer.

    >>> count("There are 3, no, 5.", "5")
    0.5
    """
    return _of_numbers(answer, str(expected))


def retrieval(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    """As ``count``, of "Paragraph 12"."""
    return _of_numbers(answer, re.findall(r"Paragraph (\d+)", expected)[0])


def retrieval_zh(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    return _of_numbers(answer, re.findall(r"段落(\d+)", expected)[0])


def code_similarity(answer: str, expected: str, classes: Sequence[str] = ()) -> float:
    """Likeness of the answer's first line that is neither comment nor fence: 1 - edits / characters of both, to the hundredth."""
    lines = (line for line in answer.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//")))
    return round(_library("rapidfuzz.fuzz").ratio(next(lines, ""), expected)) / 100
