"""Settings."""

from __future__ import annotations

from typing import Any

from ._library import check, ffi, lib, struct, text


def settings() -> list[dict[str, str]]:
    """What every setting is called, what it may be and what it means.

    Returns: a list of dicts with ``name``, ``environment`` (its variable), ``range`` and ``meaning``.

    >>> [s["name"] for s in settings()][:3]
    ['preset', 'policy', 'estimator']
    """
    found = []
    for i in range(lib.adamas_setting_count()):
        of = ffi.new("adamas_setting *")
        check(lib.adamas_setting_describe(i, of))
        found.append({name: text(getattr(of, name)) for name in ("name", "environment", "range", "meaning")})
    return found


class Config:
    """The settings of caches and plans: the defaults, and what is given by name.

    >>> Config(budget=128, policy="quest").budget
    '128'
    >>> Config(budget="much")
    Traceback (most recent call last):
    ...
    adamas.Error: adamas_config_set: budget: much is not in its range: auto | 1 to 2147483647
    """

    def __init__(self, **values: Any) -> None:
        self._native = struct("adamas_config")
        check(lib.adamas_config_defaults(self._native))
        # The preset first: it sets others.
        for name, value in sorted(values.items(), key=lambda item: item[0] != "preset"):
            self._set(name, value)

    @classmethod
    def from_environment(cls, **values: Any) -> Config:
        """The variables ``ADAMAS_...`` and the file that ``ADAMAS_CONFIG`` names, and on top of them what is given."""
        config = cls()
        check(lib.adamas_config_from_environment(config._native))
        for name, value in values.items():
            config._set(name, value)
        return config

    def but(self, **values: Any) -> Config:
        """These settings, and on top of them what is given."""
        config = Config()
        config._native[0] = self._native[0]
        for name, value in values.items():
            config._set(name, value)
        return config

    def _set(self, name: str, value: Any) -> None:
        check(lib.adamas_config_set(self._native, name.encode(), str(value).encode()))

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        room = ffi.new("char[256]")
        check(lib.adamas_config_get(self._native, name.encode(), room, 256))
        return text(room)

    def __repr__(self) -> str:
        standard = Config()
        names = [s["name"] for s in settings()]
        others = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != getattr(standard, name)]
        return f"Config({', '.join(others)})"
