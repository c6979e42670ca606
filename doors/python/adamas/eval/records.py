"""What a run has finished, a line of JSON for each part, so that the same command typed again goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


class Records:
    """A file of lines ``{"part": {...}, "rows": [...]}``. A part names all that moves its rows; of two lines of one part the last
    counts.

    Raises: SystemExit where the file holds anything else, which is left as it is.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self.rows: dict[str, Rows] = {}
        if fresh:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        *lines, torn = text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self.rows[_words(entry["part"])] = entry["rows"]
            except (ValueError, KeyError, TypeError):
                raise SystemExit(
                    f"adamas.eval: line {number} of {path} is no finished part; --out may name another folder"
                ) from None
        if torn:  # a run was killed within its last line
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def find(self, part: dict[str, Any]) -> Rows | None:
        return self.rows.get(_words(part))

    def add(self, part: dict[str, Any], rows: Rows) -> Rows:
        self.rows[_words(part)] = rows = finite(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "rows": rows}, ensure_ascii=False) + "\n")
        return rows


def _words(part: dict[str, Any]) -> str:
    return json.dumps(part, sort_keys=True)


def finite(value: Any) -> Any:
    """JSON has no NaN: what is no number is null."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
