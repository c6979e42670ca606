"""adamas bench, with a llama-bench that answers from what it was given: what is run, in which order, with which settings, and what
becomes of the answers."""

import json
import os
import shutil
import sys
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from command import COMMAND, CommandTest, call, clean_environment, soname

LIBRARY = Path(os.environ["ADAMAS_LIBRARY"]).resolve()

# Decodes at 100 tokens a second less depth / 100 without us, at 90 + its budget / 100 with us, an automatic one being 128.
WITNESS = f"""#!{sys.executable}
import json, os, sys
ours = {{k: v for k, v in os.environ.items() if k.startswith(("ADAMAS_", "GGML_"))}}
with open(os.environ["WITNESS_LOG"], "a") as log:
    log.write(json.dumps([sys.argv[1:], ours]) + "\\n")
depth = int(sys.argv[sys.argv.index("-d") + 1])
budget = ours.get("ADAMAS_BUDGET")
speed = 90 + (128 if budget == "auto" else int(budget)) / 100 if budget else 100 - depth / 100
print(json.dumps([{{"avg_ts": speed, "n_depth": depth}}]))
"""


class Bench(CommandTest):
    def setUp(self):
        super().setUp()
        for name in ("bin", "lib", "path"):
            (self.folder / name).mkdir()
        self.command = self.folder / "bin/adamas"
        shutil.copy(COMMAND, self.command)
        (self.folder / "lib" / soname(LIBRARY)).symlink_to(LIBRARY)
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
        result = self.bench("--depth", "0,8192", "--budget", "64,128", "--repeat", "2", "--tokens", "16", "--threads", "3", "--isa", "scalar", "--json", ADAMAS_SINKS="2")
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
        self.assertEqual((ours["ADAMAS_SINKS"], ours["ADAMAS_POLICY"], ours["ADAMAS_ISA"]), ("2", "adamas", "SCALAR"))
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
        self.assertEqual({t.text for t in picture.iter(named + "text")} & {"without", "adamas dot auto", "512"}, {"without", "adamas dot auto", "512"})

    def test_failures(self):
        self.assert_fails(self.bench("--depth", "-1"), 2, "--depth")
        self.assert_fails(self.bench("--budget", "0"), 2, "budget")
        self.assert_fails(self.bench("--plot", str(self.folder / "no/such/folder.svg")), 1, "folder.svg")
        self.assert_fails(call("bench", command=self.command), 2, "model is missing")
        self.tool("#!/bin/sh\necho 'error: unable to load model' >&2\nexit 3\n")
        self.assert_fails(self.bench(), 1, "exit code 3", "unable to load model")
        self.tool("#!/bin/sh\necho nothing\n")
        self.assert_fails(self.bench(), 1, "JSON")
        (self.folder / "path/llama-bench").unlink()
        self.assert_fails(self.bench(), 1, "llama-bench: there is no such tool", "make build")
        self.tool(WITNESS)
        (self.folder / "lib/libggml-adamas.so").unlink()
        self.assert_fails(self.bench(), 1, "libggml-adamas.so")


class Kernel(CommandTest):
    STAGES = ["look", "encode", "prepare", "estimate", "select", "exact", "check", "attend", "rest", "dense", "waiting"]

    def test_the_stages_add_up_and_say_what_they_read(self):
        result = call("bench", "--kernel", "--shape", "16/8x256", "--depth", "4096", "--repeat", "1", "--threads", "2", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        document = json.loads(result.stdout)
        self.assertEqual(document["left_out"], [])
        (point,) = document["points"]
        self.assertEqual((point["q_heads"], point["kv_heads"], point["head_dim"], point["tokens"]), (16, 8, 256, 4096))
        self.assertGreaterEqual(point["layers"] * 4096 * 8 * 256 * 2 * 2, 512 << 20, "no cache holds K and V of all layers")
        sparse, alone, dense = point["cases"]
        self.assertEqual([case["case"] for case in point["cases"]], ["adamas dot auto", "128 alone", "dense"])
        for case in point["cases"]:
            stages = {stage["stage"]: stage for stage in case["stages"]}
            self.assertEqual(list(stages), self.STAGES)
            self.assertEqual(case["steps"], point["layers"])
            self.assertAlmostEqual(sum(stage["bytes"] for stage in stages.values()), case["bytes"], places=3)
            self.assertAlmostEqual(sum(stage["microseconds"] for stage in stages.values()), case["microseconds"], places=6)
            self.assertAlmostEqual(sum(stage["share"] for stage in stages.values()), 1, places=9)
            worked = {name for name, stage in stages.items() if stage["microseconds"] > 0 and name not in ("waiting", "rest")}
            self.assertEqual(worked, {"look", "dense"} if case is dense else set(self.STAGES) - {"dense", "waiting", "rest"})
            self.assertAlmostEqual(case["over_dense"], dense["microseconds"] / case["microseconds"], places=6)
            for stage in stages.values():
                if stage["microseconds"] > 0:
                    self.assertAlmostEqual(stage["bandwidth_share"] * point["bandwidth"] * stage["microseconds"] / 1e6, stage["bytes"], places=3)

        def of(case, name, field):
            return next(stage[field] for stage in case["stages"] if stage["stage"] == name)

        tokens = dense["bytes"] / (2 * 8 * 256 * 2)  # the mean over layers, of which each is up to a block shorter
        self.assertTrue(4096 - 65 <= tokens <= 4096, tokens)
        self.assertAlmostEqual(of(sparse, "estimate", "bytes"), tokens * 8 * 64, places=3)  # 256 dimensions of two bits, 8 KV heads
        for case in (sparse, alone):
            self.assertAlmostEqual(of(case, "exact", "bytes"), 16 * case["rows_read"] * 256 * 2, places=3)
            self.assertAlmostEqual(of(case, "attend", "bytes"), of(case, "exact", "bytes"), places=3)
        self.assertEqual((alone["tokens_read"], alone["rows_read"]), (128, 128))
        self.assertAlmostEqual(sparse["tokens_read"], 2 * sparse["rows_read"], places=6, msg="two query heads attend to a list")
        self.assertGreater(of(sparse, "rest", "microseconds"), 10 * of(alone, "rest", "microseconds"))
        self.assertEqual((of(alone, "rest", "bytes"), alone["mass"], dense["mass"]), (0, None, None))
        self.assertTrue(0 < sparse["mass"] < 1)

        if (Path(COMMAND).resolve().parent.parent / "llama/bin/libggml.so").exists():
            self.assertIsNone(document["ggml_left_out"])
            self.assertAlmostEqual(sparse["over_ggml"], point["ggml_microseconds"] / sparse["microseconds"], places=6)
        else:
            self.assertIsNotNone(document["ggml_left_out"])

    def test_table_and_plot_without_an_engine(self):
        for name in ("bin", "lib"):
            (self.folder / name).mkdir()
        shutil.copy(COMMAND, self.folder / "bin/adamas")
        (self.folder / "lib" / soname(LIBRARY)).symlink_to(LIBRARY)
        plot = self.folder / "steps.svg"
        result = call("bench", "--kernel", "--shape", "16/8x256", "--depth", "4096,6000", "--repeat", "1", "--threads", "1", "--plot", plot, "--estimator", "manhattan", "--budget", "64",
                      command=self.folder / "bin/adamas")
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = [line.split() for line in result.stdout.splitlines()]
        self.assertEqual([line[0] for line in lines if line and line[0] in ("estimate", "step")], ["estimate", "step"] * 2)
        row = next(line for line in lines if line[:2] == ["16/8x256", "6000"])
        self.assertRegex(" ".join(row), r"^16/8x256 6000 \d+\.\d \d+\.\d - \d+\.\dx - \d+\.\d% - \d+\.\d\de9$")
        self.assertIn("ggml's attention is not measured: ", result.stdout)
        self.assertIn("adamas manhattan 64", result.stdout)
        picture = ElementTree.parse(plot).getroot()
        named = "{http://www.w3.org/2000/svg}"
        self.assertEqual([len(line.attrib["points"].split()) for line in picture.iter(named + "polyline")], [2])
        self.assertIn("16/8x256", {text.text for text in picture.iter(named + "text")})

    def test_a_prompt_beside_ggml(self):
        """Its attention is compared with ggml's where there is one: another answer is an error."""
        result = call("bench", "--kernel", "--prompt-rows", "70", "--shape", "4/2x64", "--depth", "50,300", "--repeat", "1", "--threads", "2", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        short, long = json.loads(result.stdout)["points"]
        self.assertEqual([(p["tokens"], p["rows"]) for p in (short, long)], [(50, 50), (300, 70)])
        self.assertEqual(long["operations"], 4 * 4 * 64 * sum(range(231, 301)))
        self.assertGreater(short["microseconds"], 0)

    def test_failures(self):
        def kernel(*arguments):
            return call("bench", "--kernel", *arguments)

        self.assert_fails(kernel("--prompt-rows", "0"), 2, "--prompt-rows")
        self.assert_fails(kernel("--prompt-rows", "64", "--depth", "0"), 2, "at least 1 token")
        self.assert_fails(kernel("--prompt-rows", "64", "--plot", self.folder / "a.svg"), 2, "--plot")
        self.assert_fails(kernel("--prompt-rows", "64", "--device", "cuda"), 2, "on a CPU")

        for shape in ("9", "9/3", "9/3x", "9/0x64", "-9/3x64", "9/3x64x", "9/3x64 ", "2000/2x64", "99999999999/3x64"):
            self.assert_fails(kernel("--shape", shape), 2, "--shape", "like 9/3x64")
        self.assert_fails(kernel("--shape", "9/2x64"), 2, "do not divide")
        self.assert_fails(kernel("--shape", "9/3x65"), 2, "64, 80, 96")
        self.assert_fails(kernel("--depth", "512"), 2, "--depth 512", "at least 2048")
        self.assert_fails(kernel("--depth", "8192", "--budget", "5000"), 2, "a budget of 5000", "at least 12048")
        self.assert_fails(kernel("--policy", "quest"), 2, "quest")
        self.assert_fails(kernel("--policy", "full"), 2, "policy adamas")
        self.assert_fails(kernel("--model", "m.gguf"), 2, "--model")
        self.assert_fails(kernel("--tokens", "8"), 2, "--tokens")
        self.assert_fails(kernel("--plot", self.folder / "no/such/folder.svg"), 1, "folder.svg")
        self.assert_fails(kernel("--shape", "1024/1024x256", "--depth", "1000000000"), 1, "nothing fits", "half of the free memory")
        self.assert_fails(call("bench", "--shape", "9/3x64"), 2, "--kernel")


if __name__ == "__main__":
    unittest.main()
