"""A number hidden in a long text of a few sentences (arXiv 2305.16300), prompt for prompt those of ``adamas eval passkey``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from ..answers import Question
from ..model import Model

ANSWER_TOKENS = 24
TASK = (
    "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will ask you about it.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION, LEAD = "What is the pass key? Give only its digits.", "The digits of the pass key are"


def number_of(seed: int, length: int, depth: float) -> int:
    """Five digits: FNV-1a of the place.

    >>> number_of(1, 300, 0.5)
    82044
    """
    place = f"{seed} {length} {depth:g}" if depth in (0, 1) else f"{seed} {length} {depth!r}"
    mixed = 0xCBF29CE484222325
    for byte in place.encode():
        mixed = (mixed ^ byte) * 0x100000001B3 % 2**64
    return 10000 + mixed % 90000


def passkey(model: Model, lengths: Sequence[int], depths: int, seed: int = 1, chat: bool = False) -> Iterator[Question]:
    """Prompts of at most so many tokens, with the number at so many places from the text's start to its end."""

    def prompt(number: int, fillers: int, depth: float) -> list[int]:
        ahead = int(depth * fillers + 0.5)
        hidden = f"The pass key is {number}. Remember it. {number} is the pass key. "
        text = f"{TASK}{FILLER * ahead}{hidden}{FILLER * (fillers - ahead)}\n\n{QUESTION}"
        return model.tokens(model.as_question(text) + LEAD if chat else f"{text} {LEAD}")

    one = len(model.tokens(FILLER + FILLER)) - len(model.tokens(FILLER))
    for length in sorted(set(lengths)):
        for i in range(depths):
            depth = 0.5 if depths == 1 else i / (depths - 1)
            number = number_of(seed, length, depth)
            fillers = (length - len(prompt(number, 0, depth))) // one
            if fillers < 1:
                raise SystemExit(f"adamas.eval: --lengths: {length} tokens have no room for the question")
            fields = {"task": "passkey", "length": length, "depth": depth}
            yield Question(
                prompt(number, fillers, depth), [str(number)], ANSWER_TOKENS, functools.partial(_found, str(number)), fields
            )


def _found(number: str, answer: str) -> float:
    return float(number in answer)
