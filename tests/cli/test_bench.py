"""adamas bench, with a llama-bench that answers from what it was given: what is run, in which order, with which settings, and what
becomes of the answers."""

import json
import os
import shutil
import sys
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from command import COMMAND, CommandTest, call, clean_environment

LIBRARY = Path(os.environ["ADAMAS_LIBRARY"]).resolve()

# Decodes at 100 tokens a second less depth / 100 without us, at 90 + its budget / 100 with us.
WITNESS = f"""#!{sys.executable}
import json, os, sys
ours = {{k: v for k, v in os.environ.items() if k.startswith(("ADAMAS_", "GGML_"))}}
with open(os.environ["WITNESS_LOG"], "a") as log:
    log.write(json.dumps([sys.argv[1:], ours]) + "\\n")
depth = int(sys.argv[sys.argv.index("-d") + 1])
speed = 90 + int(ours["ADAMAS_BUDGET"]) / 100 if "ADAMAS_BUDGET" in ours else 100 - depth / 100
print(json.dumps([{{"avg_ts": speed, "n_depth": depth}}]))
"""


class Bench(CommandTest):
    def setUp(self):
        super().setUp()
        for name in ("bin", "lib", "path"):
            (self.folder / name).mkdir()
        self.command = self.folder / "bin/adamas"
        shutil.copy(COMMAND, self.command)
        (self.folder / "lib" / ".".join(LIBRARY.name.split(".")[:3])).symlink_to(LIBRARY)
        (self.folder / "lib/libggml-adamas.so").touch()
        self.log = self.folder / "log"
        self.tool(WITNESS)

    def tool(self, text):
        path = self.folder / "path/llama-bench"
        path.write_text(text)
        path.chmod(0o755)

    def bench(self, *arguments, **variables):
        path = f"{self.folder / 'path'}:{os.environ['PATH']}"
        environment = clean_environment(PATH=path, WITNESS_LOG=str(self.log), **variables)
        return call("bench", "--model", "m.gguf", *arguments, command=self.command, environment=environment)

    def test_every_depth_without_and_with_each_case(self):
        result = self.bench("--depth", "0,8192", "--budget", "64,128", "--repeat", "2", "--tokens", "16", "--threads", "3", "--device", "scalar", "--json", ADAMAS_SINKS="2")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)
        self.assertEqual([(row["depth"], row["policy"], row["budget"]) for row in rows],
                         [(d, p, b) for d in (0, 8192) for p, b in (("full", None), ("adamas", 64), ("adamas", 128))])
        self.assertEqual([round(row["tokens_per_second"], 2) for row in rows], [100, 90.64, 91.28, 18.08, 90.64, 91.28])
        self.assertAlmostEqual(rows[5]["ratio"], 91.28 / 18.08, places=4)
        self.assertEqual([len(row["runs"]) for row in rows], [2] * 6)

        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.assertEqual([ours.get("ADAMAS_BUDGET") for _, ours in calls], [None, "64", "128"] * 4, "in turn")
        arguments, ours = calls[1]
        self.assertEqual(arguments, "-m m.gguf -fa 1 -p 0 -r 1 -o json -t 3 -n 16 -d 0".split())
        self.assertEqual(ours["GGML_BACKEND_PATH"], str(self.folder / "lib/libggml-adamas.so"))
        self.assertEqual((ours["ADAMAS_SINKS"], ours["ADAMAS_POLICY"], ours["ADAMAS_DEVICE"]), ("2", "adamas", "SCALAR"))
        self.assertEqual(calls[0][1], {}, "without means without")

    def test_table_and_plot(self):
        plot = self.folder / "speed.svg"
        result = self.bench("--depth", "0,512,8192", "--plot", str(plot))
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stdout.splitlines()
        self.assertIn("without", lines[2])
        self.assertEqual(lines[-1].split(), ["8192", "18.1", "91.3", "5.05x"])
        picture = ElementTree.parse(plot).getroot()
        named = "{http://www.w3.org/2000/svg}"
        curves = [line.attrib["points"].split() for line in picture.iter(named + "polyline")]
        self.assertEqual([len(points) for points in curves], [3, 3])
        without, with_us = [[float(point.split(",")[1]) for point in points] for points in curves]
        self.assertLess(without[0], with_us[0], "100 is above 91.28")
        self.assertGreater(without[2], with_us[2], "18 is below")
        self.assertEqual({t.text for t in picture.iter(named + "text")} & {"without", "adamas dot 128", "512"}, {"without", "adamas dot 128", "512"})

    def test_failures(self):
        self.assert_fails(self.bench("--depth", "-1"), 2, "--depth")
        self.assert_fails(self.bench("--budget", "0"), 2, "budget")
        self.assert_fails(self.bench("--plot", str(self.folder / "no/such/folder.svg")), 1, "folder.svg")
        self.assert_fails(call("bench", command=self.command), 2, "model is missing")
        self.tool("#!/bin/sh\necho 'error: unable to load model' >&2\nexit 3\n")
        self.assert_fails(self.bench(), 1, "exit code 3", "unable to load model")
        self.tool("#!/bin/sh\necho nothing\n")
        self.assert_fails(self.bench(), 1, "JSON")
        (self.folder / "lib/libggml-adamas.so").unlink()
        self.assert_fails(self.bench(), 1, "libggml-adamas.so")


if __name__ == "__main__":
    unittest.main()
