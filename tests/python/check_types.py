"""check_types.py PACKAGE: mypy, or 77 where there is none."""

import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mypy") is None:
    print("skipped: this Python has no mypy")
    sys.exit(77)
sys.exit(
    subprocess.run(
        [sys.executable, "-m", "mypy", *sys.argv[1:], "--ignore-missing-imports", "--disallow-untyped-defs", "--exclude", "bench",
         "--cache-dir", "/dev/null"]
    ).returncode
)  # fmt: skip
