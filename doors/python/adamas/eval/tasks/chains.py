"""A text in which every step matters: values that follow from values said long before, as an interpreter prints them."""

from __future__ import annotations

import random

from ..model import Model


def chains(count: int, seed: int = 1) -> str:
    r"""A session of so many entries. Each names a value that follows from one of all earlier ones, and prints that of another.

    >>> chains(3).split("\n")
    ['>>> k4 = 33', '>>> k4', '33', '>>> h4 = k4 + 65', '>>> h4', '98', '>>> r7 = k4', '>>> h4', '98']
    """
    rng = random.Random(seed)
    names = [
        f"{letter}{other}{digit}"
        for letter in "abcdefghijklmnopqrstuvwxyz"
        for other in ("", *"abcdefghijklmnop")
        for digit in range(10)
    ]
    rng.shuffle(names)
    names.sort(key=len)
    values: dict[str, int] = {}
    lines = []
    for i in range(count):
        name = names[i % len(names)]
        before = list(values)
        if not before:
            values[name] = rng.randrange(10, 100)
            lines.append(f">>> {name} = {values[name]}")
        else:
            of = rng.choice(before)
            step = rng.choice([0, rng.randrange(10 - values[of], 100 - values[of])])
            values[name] = values[of] + step
            lines.append(f">>> {name} = {of}" + (f" {'+' if step > 0 else '-'} {abs(step)}" if step else ""))
        shown = rng.choice(list(values))
        lines += [f">>> {shown}", str(values[shown])]
    return "\n".join(lines)


def chains_of(model: Model, tokens: int) -> list[int]:
    """So many tokens of it."""
    count = tokens // 8
    while len(found := model.tokens(chains(count))) < tokens:
        count *= 2
    return found[:tokens]
