"""The settings that are compared: ``--policy full,quest,adamas --budget auto,128`` are three cases and more."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import Config, settings
from .._library import lib

POLICIES = {
    "full": "the model's own attention to everything",
    "streaming": "StreamingLLM: the first tokens and the last",
    "quest": "Quest: pages of 16 tokens by the bounds of their keys",
    "paper": "Adamas as published: the preset `paper`",
    "adamas": "ours: a list as long as it needs to be and a rest, or a fixed budget",
    "oracle": "the tokens with the highest true scores",
}
BUDGETS = ("auto", "16", "32", "64", "128", "256", "512", "1024")
WITHOUT_ESTIMATE = {"sinks", "recent", "dense_layers", "min_context"}  # settings that every policy reads


@dataclass(frozen=True)
class Case:
    """A policy with its settings."""

    policy: str
    settings: tuple[tuple[str, str], ...] = ()
    label: str | None = None  # what tells it from other cases of its policy and budget

    def config(self, **more: Any) -> Config:
        own: dict[str, Any] = {"preset": "paper"} if self.policy == "paper" else {"policy": self.policy}
        return Config(**own, **{**dict(self.settings), **more})

    @property
    def is_full(self) -> bool:
        return self.policy == "full"

    @property
    def words(self) -> list[str]:
        """All that moves a result."""
        config = self.config()
        return [self.policy] if self.is_full else [f"{s['name']}={getattr(config, s['name'])}" for s in settings()]

    @property
    def name(self) -> str:
        budget = "" if self.is_full else f" {self.config().budget}"
        return self.policy + budget + (f" {self.label}" if self.label else "")

    @property
    def fields(self) -> dict[str, Any]:
        """With which every row of results begins, in the words of ``adamas eval``."""
        config = self.config()
        budget = None if self.is_full else config.budget if config.budget == "auto" else int(config.budget)
        return {
            "policy": config.policy,
            "estimator": config.estimator if config.policy == "adamas" else None,
            "preset": config.preset if config.preset != "default" else None,
            "budget": budget,
            "label": self.label,
        }


def parse_settings(given: Sequence[str]) -> dict[str, list[str]]:
    """``["share=0.0004,0.001"]`` as lists by name.

    >>> parse_settings(["share=0.0004,0.001", "sinks=4"])
    {'share': ['0.0004', '0.001'], 'sinks': ['4']}
    """
    lists: dict[str, list[str]] = {}
    for one in given:
        name, equals, values = one.partition("=")
        if not equals or name in ("policy", "preset", "budget", "rows", "stats"):
            raise SystemExit(
                f"adamas.eval: --set {one}: it has to be NAME=VALUE, a setting other than those with a flag of their own"
            )
        lists[name] = values.split(",")
    return lists


def cases_of(policies: Sequence[str], budgets: Sequence[str], lists: Mapping[str, Sequence[str]]) -> list[Case]:
    """Every combination, full first, asked for or not, and none twice. Only ours has an automatic budget, the others have a number.

    >>> [case.name for case in cases_of(["quest", "adamas"], ["auto", "64"], {})]
    ['full', 'quest 128', 'quest 64', 'adamas auto', 'adamas 64']
    """
    for policy in policies:
        if policy not in POLICIES:
            raise SystemExit(f"adamas.eval: --policy {policy}; there are {', '.join(POLICIES)}")
    found: dict[tuple[str, ...], Case] = {tuple(Case("full").words): Case("full")}
    for policy, budget in itertools.product(policies, budgets):
        if budget == "auto" and policy != "adamas":
            budget = str(lib.ADAMAS_AUTO_TOKENS)
        own = {name: values for name, values in lists.items() if policy in ("adamas", "paper") or name in WITHOUT_ESTIMATE}
        for values in itertools.product(*own.values()):
            label = " ".join(f"{name}={value}" for name, value in zip(own, values) if len(own[name]) > 1)
            case = Case(policy, (("budget", budget), *zip(own, values)), label or None) if policy != "full" else Case("full")
            found.setdefault(tuple(case.words), case)
    return list(found.values())
