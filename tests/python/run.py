"""run.py MODULE ARGUMENTS: python -m MODULE ARGUMENTS, or 77 where it or what the package stands on is not there, or pytest has no test
to run here."""

import importlib.util
import subprocess
import sys

missing = [name for name in (sys.argv[1], "numpy", "cffi") if importlib.util.find_spec(name) is None]
if missing:
    print(f"skipped: this Python has no {', '.join(missing)}")
    sys.exit(77)
code = subprocess.run([sys.executable, "-m", *sys.argv[1:]]).returncode
sys.exit(77 if sys.argv[1] == "pytest" and code == 5 else code)
