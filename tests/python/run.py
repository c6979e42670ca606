"""run.py ARGUMENTS: pytest, or 77 where it or what the package stands on is not there."""

import importlib.util
import sys

missing = [name for name in ("pytest", "numpy", "cffi") if importlib.util.find_spec(name) is None]
if missing:
    print(f"skipped: this Python has no {', '.join(missing)}")
    sys.exit(77)

import pytest  # noqa: E402

sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
