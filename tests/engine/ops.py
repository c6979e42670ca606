"""The engine's own tests of attention and of writes into a cache, computed by our back end (policy full) and by its CPU back end:
how many cases ran here, how many were declined and how many failed. ops.py [PATTERN]: the cases whose parameters match."""

import os
import re
import subprocess
import sys

from engine import BACKEND, TOOLS, environment

OPERATIONS = ("FLASH_ATTN_EXT", "SET_ROWS")
exact = environment(policy="full", min_context=0) | {"GGML_BACKEND_PATH": BACKEND}
command = [os.environ["ADAMAS_OPS"], "test", "-b", "Adamas", "-o", ",".join(OPERATIONS)]
for pattern in sys.argv[1:2]:
    command += ["-p", pattern]
# In the tools' folder the engine finds its CPU back end.
tests = subprocess.Popen(command, env=exact, cwd=TOOLS, stdout=subprocess.PIPE, text=True)

counts = {operation: {"ran": 0, "declined": 0, "failed": 0} for operation in OPERATIONS}
for line in tests.stdout:
    line = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
    case = re.match(r"(\w+)\(.*\): (.*)$", line)
    if not case or case[1] not in counts:
        continue
    outcome = "ran" if case[2] == "OK" else "declined" if case[2].startswith("not supported") else "failed"
    counts[case[1]][outcome] += 1
    if outcome == "failed":
        print("FAILED ", line, flush=True)
code = tests.wait()

for operation, count in counts.items():
    print(f"{operation:<16} {count['ran']:>6} ran here and agree, {count['declined']:>6} declined, {count['failed']:>6} failed")
failed = sum(count["failed"] for count in counts.values())
if code != 0 and failed == 0:
    print(f"FAILED  the tests ended with code {code}")
sys.exit(code != 0 or failed > 0 or not any(count["ran"] for count in counts.values()))
