"""The tasks of RULER (arXiv 2404.06654) that need no download, by the definitions of its paper: needles in repeated and in made-up
text and among needles, variable tracking, common words, frequent words. Made-up text stands for its essays. And one task more,
``sums``: variable tracking with a sum at each step, where a single wrong step spoils the answer.

An answer's score is the share of the expected texts that it holds.
"""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..answers import Question
from ..model import Model
from . import words

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass
class Example:
    text: str
    question: str
    lead: str  # begins the answer
    expected: list[str]


def hide(rng: random.Random, lines: list[str], hidden: Sequence[str]) -> list[str]:
    """The hidden lines, in their order, at random places among the others."""
    places = sorted(rng.randrange(len(lines) + 1) for _ in hidden)
    for place, line in reversed(list(zip(places, hidden))):
        lines.insert(place, line)
    return lines


def needles(
    haystack: str, keys: int = 1, values: int = 1, queries: int = 1, key: str = "words", kind: str = "numbers"
) -> Callable[..., Example]:
    def needle(of: str, value: str) -> str:
        return f"One of the special magic {kind} for {of} is: {value}."

    def make(rng: random.Random, size: int) -> Example:
        names = [words.value(rng, key) for _ in range(keys)]
        found = {name: [words.value(rng, kind) for _ in range(values)] for name in names}
        hidden = [needle(name, value) for name in names for value in found[name]]
        rng.shuffle(hidden)
        lines = {
            "noise": lambda: [NOISE] * size,
            "text": lambda: [words.sentence(rng) for _ in range(size)],
            "needles": lambda: [needle(words.value(rng, key), words.value(rng, kind)) for _ in range(size)],
        }[haystack]()
        asked = rng.sample(names, queries)
        who = asked[0] if queries == 1 else ", ".join(asked[:-1]) + ", and " + asked[-1]
        one = queries * values == 1
        what = kind[:-1] if one else kind
        verb = "is" if one else "are"
        them = "it" if one else "them"
        begin = f"{'A' if one else 'Some'} special magic {what} {verb} hidden within the following text. "
        begin += f"Memorize {them}. I will quiz you about {them} afterwards.\n"
        return Example(
            begin + (" " if haystack == "text" else "\n").join(hide(rng, lines, hidden)),
            f"What {verb}{'' if one else ' all'} the special magic {what} for {who} mentioned in the provided text?",
            f"The special magic {what} for {who} mentioned in the provided text {verb}",
            [value for name in asked for value in found[name]],
        )

    return make


def _names(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault("".join(rng.choices(string.ascii_uppercase, k=5)))
    return list(found)


def variables(rng: random.Random, size: int, hops: int = 4) -> Example:
    """A chain of assignments in noise; all its variables are asked for. One small example comes first."""

    def chain(lines: int) -> tuple[str, str, list[str]]:
        names, number = _names(rng, hops + 1), str(rng.randrange(10000, 100000))
        steps = [f"VAR {names[0]} = {number}"] + [f"VAR {b} = VAR {a}" for a, b in zip(names, names[1:])]
        return "\n".join(hide(rng, [NOISE] * lines, steps)), number, names

    def asked(number: str) -> tuple[str, str]:
        return (
            f"Question: Find all variables that are assigned the value {number} in the text above.",
            f"Answer: According to the chain(s) of variable assignment in the text above, {hops + 1} variables are assigned the value "
            f"{number}, they are:",
        )

    begin = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    shown, of_shown, answer = chain(5)
    text, number, names = chain(size)
    example = f"{begin}{shown}\n{' '.join(asked(of_shown))} {' '.join(answer)}\n\n"
    return Example(example + begin + text, *asked(number), names)


def sums(rng: random.Random, size: int, steps: int = 4) -> Example:
    """A chain of sums in made-up text: the last variable's value is asked for. One small example comes first."""

    def chain(lines: int) -> tuple[str, str, int]:
        names, total = _names(rng, steps + 1), rng.randrange(10, 30)
        said = [f"VAR {names[0]} = {total}"]
        for a, b in zip(names, names[1:]):
            more = rng.randrange(2, 10)
            total += more
            said.append(f"VAR {b} = VAR {a} + {more}")
        return "\n".join(hide(rng, [words.sentence(rng) for _ in range(lines)], said)), names[-1], total

    begin = "Memorize the variables that are hidden in the following text and work out their values.\n\n"
    shown, of_shown, answer = chain(5)
    text, name, total = chain(size)
    asked = "Question: What is the value of {}?", "Answer: The value of {} is"
    example = f"{begin}{shown}\n{asked[0].format(of_shown)} {asked[1].format(of_shown)} {answer}\n\n"
    return Example(example + begin + text, asked[0].format(name), asked[1].format(name), [str(total)])


def common_words(rng: random.Random, size: int, common: int = 10, often: int = 30, seldom: int = 3) -> Example:
    """A numbered list in which ten words come 30 times and the others three times. One small example comes first."""

    def listed(others: int, often: int, seldom: int) -> tuple[str, list[str]]:
        found = words.distinct_words(rng, common + others)
        all_words = found[:common] * often + found[common:] * seldom
        rng.shuffle(all_words)
        return " ".join(f"{i}. {word}" for i, word in enumerate(all_words, 1)), found[:common]

    begin = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    question = f"Question: What are the {common} most common words in the above list?"
    lead = f"Answer: The top {common} words that appear most often in the list are:"
    shown, answer = listed(20, 5, 1)
    text, expected = listed(size, often, seldom)
    example = f"{begin}{shown}\n{question} {lead} {' '.join(f'{i}. {word}' for i, word in enumerate(answer, 1))}\n\n"
    return Example(example + begin + text, question, lead, expected)


def frequent_words(rng: random.Random, size: int, alpha: float = 2.0) -> Example:
    """Coded words, of which the k-th comes in proportion to k^-alpha; the first is noise, the next three are asked for."""
    coded = ["...", *(words.word(rng) for _ in range(49))]
    weights = [k**-alpha for k in range(1, len(coded) + 1)]
    counts = [round(size * weight / sum(weights)) for weight in weights]
    text = [word for word, count in zip(coded, counts) for _ in range(count)]
    rng.shuffle(text)
    return Example(
        "Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. " + " ".join(text),
        "Question: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?",
        "Answer: According to the coded text above, the three most frequently appeared words are:",
        coded[1:4],
    )


# What makes an example of a size, and the tokens of an answer.
TASKS: dict[str, tuple[Callable[..., Example], int]] = {
    "niah_single_1": (needles("noise"), 128),
    "niah_single_2": (needles("text"), 128),
    "niah_single_3": (needles("text", kind="uuids"), 128),
    "niah_multikey_1": (needles("text", keys=4), 128),
    "niah_multikey_2": (needles("needles"), 128),
    "niah_multikey_3": (needles("needles", key="uuids", kind="uuids"), 128),
    "niah_multivalue": (needles("text", values=4), 128),
    "niah_multiquery": (needles("text", keys=4, queries=4), 128),
    "vt": (variables, 30),
    "cwe": (common_words, 120),
    "fwe": (frequent_words, 50),
    "sums": (sums, 8),
}


def score(expected: Sequence[str], answer: str) -> float:
    """The share of the expected texts that an answer holds, whatever their case.

    >>> score(["ABEL", "Seth"], "Abel, kain")
    0.5
    """
    return sum(one.lower() in answer.lower() for one in expected) / len(expected)


def ruler(
    model: Model, names: Sequence[str], lengths: Sequence[int], samples: int, seed: int = 1, chat: bool = False
) -> Iterator[Question]:
    """The longest prompts that leave room for the answer in so many tokens.

    Raises: SystemExit where there is no such task, or no room for it.
    """
    for name in names:
        if name not in TASKS:
            raise SystemExit(f"adamas.eval: --tasks {name}; there are {', '.join(TASKS)}")
        make, most = TASKS[name]
        for length in sorted(set(lengths)):
            for sample in range(samples):

                def prompt(size: int) -> tuple[list[int], list[str]]:
                    example = make(random.Random(f"{seed} {name} {length} {sample}"), size)
                    text = f"{example.text}\n{example.question}"
                    text = model.as_question(text) + example.lead if chat else f"{text} {example.lead}"
                    return model.tokens(text), example.expected

                if len(prompt(1)[0]) + most > length:
                    raise SystemExit(f"adamas.eval: --lengths: {length} tokens have no room for the task {name}")
                low, high = 1, 2
                while len(prompt(high)[0]) + most <= length:
                    low, high = high, 2 * high
                while high - low > max(1, low // 64):
                    middle = (low + high) // 2
                    low, high = (middle, high) if len(prompt(middle)[0]) + most <= length else (low, middle)
                tokens, expected = prompt(low)
                fields = {"task": name, "length": length, "sample": sample}
                yield Question(tokens, expected, most, functools.partial(score, expected), fields)
