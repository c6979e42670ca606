"""Words, values and sentences that are made up, so that nothing has to be downloaded."""

from __future__ import annotations

import random
import uuid

NOUNS = (
    "river stone garden letter window market bridge doctor farmer engine island forest teacher harbor village mountain "
    "kitchen painter library soldier station weather captain orchard machine morning factory neighbor journal festival "
    "castle valley sailor blanket mirror ladder candle meadow tunnel museum"
).split()
ADJECTIVES = (
    "quiet old narrow bright heavy distant gentle broken curious golden empty patient ancient simple careful wooden silver "
    "frozen hidden famous honest humble lonely steady"
).split()
VERBS = (
    "follows remembers paints repairs visits crosses describes ignores protects surprises measures borrows answers watches "
    "supports mentions forgets welcomes avoids studies"
).split()


def word(rng: random.Random, syllables: int = 3) -> str:
    """A word of no language."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables))


def distinct_words(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(word(rng))
    return list(found)


def sentence(rng: random.Random) -> str:
    some = [f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2)]
    return f"The {some[0]} {rng.choice(VERBS)} the {some[1]} near the {rng.choice(NOUNS)}."


def value(rng: random.Random, kind: str) -> str:
    """One of `numbers` (seven digits), `words`, `uuids`."""
    if kind == "numbers":
        return str(rng.randrange(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(ADJECTIVES)}-{word(rng)}"
